"""The slot: settings for one start of a sandbox, in a reserved area of its disk; docs/layout-1.md.

Header and payload are hashed. The digest is on the kernel command line, and the guest's init refuses other bytes. So the
guest uses exactly what the runner wrote, even if an earlier run has changed the slot.
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
from rootdisk.parsing.ids import check_user
from rootdisk.records import Record
from rootdisk.records import pack as pack_records
from runner.disk import qcow2

_MAGIC = b"RDSLOT1\0"
_HEADER = struct.Struct("<8sII")


class Slot(NamedTuple):
    """A filled slot: the bytes of the complete extent, and the hex sha256 for the kernel command line."""

    data: bytes
    digest: str


def pack(records: Iterable[Record], length: int) -> Slot:
    """Return a slot of `length` bytes with `records`.

    Raises:
        BadInput: A record contains a NUL byte, a user is out of range, or the records do not fit.
    """
    records = list(records)
    for key, value in records:
        if key == "user":
            check_user(os.fsdecode(value), "user")
    payload = pack_records(records)
    used = _HEADER.size + len(payload)
    if used > length:
        raise BadInput(
            f"environment, certificates and command take {used} bytes; the slot has {length}",
            "put large data on the disk at build time, or send it over standard input",
        )
    head = _HEADER.pack(_MAGIC, len(payload), 0) + payload
    return Slot(head + bytes(length - used), hashlib.sha256(head).hexdigest())


def clusters(extent: SlotExtent, slot: Slot) -> dict[int, bytes]:
    """Split the slot into qcow2 clusters, by disk offset."""
    size = qcow2.CLUSTER_BYTES
    return {extent.offset + at: slot.data[at : at + size] for at in range(0, extent.length, size)}


def write(disk: Path, extent: SlotExtent, slot: Slot, record: Path, *, overlay: bool, durable: bool = True) -> None:
    """Write `slot` to a new clone and read it back. An overlay must already have the clusters.

    The digests of the written bytes go to the file `record`, for `rewrite`. If there will be no `rewrite`, `durable` may be
    false.

    Raises:
        RootdiskError: The slot was not written correctly.
    """
    write_json(record, [[digest] for digest in _digests(clusters(extent, slot).values())], 0o600, durable=durable)
    _write(disk, extent, slot, overlay)


def rewrite(disk: Path, extent: SlotExtent, slot: Slot, record: Path, *, overlay: bool) -> None:
    """Write `slot` to a stopped clone that has run before, and read it back.

    If the slot does not contain what was last written, nothing is written: the file may have been moved or changed, so a write
    could damage another file. An interrupted rewrite can be repeated: each cluster then has its old or its new content.

    Raises:
        RootdiskError: The slot has changed, or was not written correctly.
    """
    hint = "the disk's data can still be read with imagetool; boot a new sandbox, and runner rm this one"
    present = _digests(_read(disk, extent, overlay))
    try:
        expected = read_json(record)
        if isinstance(expected, dict):  # this release writes a list; a later one may write an object with a version
            raise RootdiskError(f"{record}: written by another version of rootdisk", "start it with that version")
        is_unchanged = len(expected) == len(present) and all(p in e for p, e in zip(present, expected, strict=True))
    except (OSError, ValueError, TypeError) as err:
        raise RootdiskError(f"{record}: unreadable, so the slot cannot be checked", hint) from err
    if not is_unchanged:
        raise RootdiskError(f"{disk}: the slot has changed since it was last written", hint)
    new = _digests(clusters(extent, slot).values())
    write_json(record, [sorted({a, b}) for a, b in zip(present, new, strict=True)], 0o600)
    _write(disk, extent, slot, overlay)
    write_json(record, [[digest] for digest in new], 0o600)


def _write(disk: Path, extent: SlotExtent, slot: Slot, overlay: bool) -> None:
    fd = open_file(disk, os.O_RDWR)
    try:
        places = {qcow2.locate(fd, at) if overlay else at: data for at, data in clusters(extent, slot).items()}
        for place, data in places.items():
            if os.pwrite(fd, data, place) != len(data):
                raise RootdiskError(f"{disk}: the slot was written partly", "is the file system full?")
    finally:
        os.close(fd)
    if b"".join(_read(disk, extent, overlay)) != slot.data:
        raise RootdiskError(f"{disk}: the slot differs from what was written", "check the host's storage")


def _read(disk: Path, extent: SlotExtent, overlay: bool) -> list[bytes]:
    """Return the current bytes of the slot, split into clusters."""
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
