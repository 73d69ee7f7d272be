"""The slot: what one sandbox is told at start, as bytes in a reserved place of its disk; docs/layout-1.md.

Header and payload are hashed; the digest goes on the kernel command line and the guest's init refuses other bytes. So
what the guest believes is what the runner wrote, whatever an earlier run of the same disk did to it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import SlotExtent
from rootdisk.durable import open_file, read_json, write_json
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.ids import check_user
from rootdisk.records import Record
from rootdisk.records import pack as pack_records
from runner.disk import qcow2

_MAGIC = b"RDSLOT1\0"
_HEADER = struct.Struct("<8sII")


class Slot(NamedTuple):
    """A filled slot: the whole extent's bytes, and the hex sha256 that the kernel command line names."""

    data: bytes
    digest: str


def pack(records: Iterable[Record], length: int) -> Slot:
    """The slot of `length` bytes that holds `records`; BadInput where one has a NUL byte, a user is out of
    range or all do not fit."""
    records = list(records)
    for key, value in records:
        if key == "user":
            check_user(os.fsdecode(value), "user")
    payload = pack_records(records)
    used = _HEADER.size + len(payload)
    if used > length:
        raise BadInput(
            f"environment, certificates and command take {used} bytes, the slot holds {length}",
            "put large data on the disk at build time, or send it over standard input",
        )
    head = _HEADER.pack(_MAGIC, len(payload), 0) + payload
    return Slot(head + bytes(length - used), hashlib.sha256(head).hexdigest())


def clusters(extent: SlotExtent, slot: Slot) -> dict[int, bytes]:
    """The slot cut in qcow2 clusters, by disk offset."""
    size = qcow2.CLUSTER_BYTES
    return {extent.offset + at: slot.data[at : at + size] for at in range(0, extent.length, size)}


def write(disk: Path, extent: SlotExtent, slot: Slot, record: Path, *, overlay: bool, durable: bool = True) -> None:
    """Put `slot` on a new clone, raw or a qcow2 overlay that has the clusters, and read it back.

    `record` is made: it keeps which bytes were written, as digests, for `rewrite`; `durable` says that there may be one.
    """
    write_json(record, [[digest] for digest in _digests(clusters(extent, slot).values())], 0o600, durable=durable)
    _put(disk, extent, slot, overlay)


def rewrite(disk: Path, extent: SlotExtent, slot: Slot, record: Path, *, overlay: bool) -> None:
    """Put `slot` on a stopped clone that ran before, and read it back.

    RootdiskError, and nothing written, where its present bytes are not those written last: then somebody has moved or
    changed the slot's file, and writing there could damage another. A rewrite that was cut off may be done again:
    each cluster then holds what was there before it or what it wrote.
    """
    hint = "the disk's data can still be read with imagetool; boot a new sandbox, and runner rm this one"
    present = _digests(_read(disk, extent, overlay))
    try:
        expected = read_json(record)
        sound = len(expected) == len(present) and all(p in e for p, e in zip(present, expected, strict=True))
    except (OSError, ValueError, TypeError) as err:
        raise RootdiskError(f"{record}: cannot tell what was last written to the slot", hint) from err
    if not sound:
        raise RootdiskError(f"{disk}: the slot does not hold what was last written to it", hint)
    new = _digests(clusters(extent, slot).values())
    write_json(record, [sorted({a, b}) for a, b in zip(present, new, strict=True)], 0o600)
    _put(disk, extent, slot, overlay)
    write_json(record, [[digest] for digest in new], 0o600)


def _put(disk: Path, extent: SlotExtent, slot: Slot, overlay: bool) -> None:
    fd = open_file(disk, os.O_RDWR)
    try:
        places = {qcow2.locate(fd, at) if overlay else at: data for at, data in clusters(extent, slot).items()}
        for place, data in places.items():
            if os.pwrite(fd, data, place) != len(data):
                raise RootdiskError(f"{disk}: short write of the slot", "is the file system full?")
    finally:
        os.close(fd)
    if b"".join(_read(disk, extent, overlay)) != slot.data:
        raise RootdiskError(f"{disk}: the slot read back differs from what was written", "check the host's storage")


def _read(disk: Path, extent: SlotExtent, overlay: bool) -> list[bytes]:
    """The slot's present bytes, cut in clusters."""
    step = qcow2.CLUSTER_BYTES
    fd = open_file(disk)
    try:
        return [
            os.pread(fd, step, qcow2.locate(fd, at) if overlay else at)
            for at in range(extent.offset, extent.offset + extent.length, step)
        ]
    finally:
        os.close(fd)


def _digests(pieces: Iterable[bytes]) -> list[str]:
    return [hashlib.sha256(piece).hexdigest() for piece in pieces]
