"""Kernels of a few bytes: a bzImage around a payload, and an ELF file with a PVH entry."""

from __future__ import annotations

import struct


def bzimage(payload: bytes, size: int) -> bytes:
    """Return a bzImage with a compressed payload that says that it has `size` bytes."""
    payload += (
        b""
        if payload.startswith(b"\x1f\x8b") and size == int.from_bytes(payload[-4:], "little")
        else struct.pack("<I", size)
    )
    head = bytearray(1024)  # two sectors of set-up code
    head[0x1F1] = 1
    head[0x202:0x208] = b"HdrS" + struct.pack("<H", 0x20F)
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload


def elf(
    *,
    machine: int = 62,
    owner: bytes = b"Xen\0",
    note: bytes = b"",
    entry: int = 0x1000000,
    physical: int = 0x1000000,
    file_size: int = 64,
    count: int = 2,
) -> bytes:
    """Return an ELF file with a segment to load, and another with a note of another kind before the PVH entry's."""
    kind = note[-1] if note else 18
    notes = struct.pack("<III4s8s", 4, 8, 6, b"GNU\0", b"") + struct.pack("<III4sQ", 4, 8, kind, owner, entry)
    text_at = 64 + 2 * 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, text_at, physical, physical, file_size, file_size, 4096)
    noted = struct.pack("<IIQQQQQQ", 4, 4, text_at + 64, 0, 0, len(notes), len(notes), 4)
    return header + load + noted + bytes(64) + notes
