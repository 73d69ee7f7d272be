"""The slot: what one sandbox is told at start, as bytes in a reserved place of its disk; docs/layout-1.md.

Header and payload are hashed; the digest goes on the kernel command line and the guest's init refuses other bytes. So
what the guest believes is what the runner wrote, whatever an earlier run of the same disk did to it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runner import qcow2
from runner.artifact import SlotExtent
from runner.errors import BadInput, RootdiskError

_MAGIC = b"RDSLOT1\0"
_HEADER = struct.Struct("<8sII")

Record = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Slot:
    """A filled slot: the whole extent's bytes, and the hex sha256 that the kernel command line names."""

    data: bytes
    digest: str


def pack(records: Iterable[Record], length: int) -> Slot:
    """The slot of `length` bytes that holds `records`; BadInput where one has a NUL byte or all do not fit."""
    payload = b"".join(_record(key, value) for key, value in records)
    used = _HEADER.size + len(payload)
    if used > length:
        raise BadInput(
            f"environment, certificates and command take {used} bytes, the slot holds {length}",
            "put large data on the disk at build time, or send it over standard input",
        )
    head = _HEADER.pack(_MAGIC, len(payload), 0) + payload
    return Slot(head + bytes(length - used), hashlib.sha256(head).hexdigest())


def _record(key: str, value: bytes) -> bytes:
    if b"\0" in value:
        raise BadInput(f"{key} {value.partition(b'=')[0]!r:.60} holds a NUL byte", "no program could receive it")
    return key.encode() + b"=" + value + b"\0"


def clusters(extent: SlotExtent, slot: Slot) -> dict[int, bytes]:
    """The slot cut in qcow2 clusters, by disk offset."""
    size = qcow2.CLUSTER_BYTES
    return {extent.offset + at: slot.data[at : at + size] for at in range(0, extent.length, size)}


def write(disk: Path, extent: SlotExtent, slot: Slot, *, overlay: bool) -> None:
    """Put `slot` on a stopped clone, raw or a qcow2 overlay that has the clusters, and read it back."""
    fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset, data in clusters(extent, slot).items():
            if os.pwrite(fd, data, qcow2.locate(fd, offset) if overlay else offset) != len(data):
                raise RootdiskError(f"{disk}: short write of the slot", "is the file system full?")
    finally:
        os.close(fd)
    if read_digest(disk, extent, overlay=overlay) != slot.digest:
        raise RootdiskError(f"{disk}: the slot read back differs from what was written", "check the host's storage")


def read_digest(disk: Path, extent: SlotExtent, *, overlay: bool) -> str:
    """The hex sha256 of the slot's header and payload on a stopped clone; "" where there is no sound slot."""
    fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b"".join(
            os.pread(fd, qcow2.CLUSTER_BYTES, qcow2.locate(fd, offset) if overlay else offset)
            for offset in range(extent.offset, extent.offset + extent.length, qcow2.CLUSTER_BYTES)
        )
    finally:
        os.close(fd)
    magic, length, _ = _HEADER.unpack_from(data)
    used = _HEADER.size + length
    if magic != _MAGIC or used > extent.length or any(data[used:]):
        return ""
    return hashlib.sha256(data[:used]).hexdigest()
