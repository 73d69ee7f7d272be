"""The superblock as bytes and as values; struct ext4_super_block in fs/ext4/ext4.h."""

from __future__ import annotations

import struct
from typing import Any

from rootdisk.ext4.checksum import superblock_checksum
from rootdisk.ext4.format import (
    SUPERBLOCK_CHECKSUM_OFFSET,
    SUPERBLOCK_FIELDS,
    SUPERBLOCK_SIZE,
)


def pack(**fields: int | bytes) -> bytearray:
    """Return a superblock of the named fields, 1024 bytes. All other fields are zero; `seal` adds the checksum."""
    raw = bytearray(SUPERBLOCK_SIZE)
    for name, value in fields.items():
        put(raw, name, value)
    return raw


def unpack(raw: bytes | bytearray) -> dict[str, Any]:
    """Return the fields of a superblock of 1024 bytes by the kernel's names."""
    return {name: struct.unpack_from("<" + form, raw, offset)[0] for name, (offset, form) in SUPERBLOCK_FIELDS.items()}


def put(raw: bytearray, name: str, value: int | bytes) -> None:
    """Set the field `name`. A name that ends in `_lo` stands for both halves of a 64-bit number."""
    if name.endswith("_lo") and isinstance(value, int):
        put(raw, name.removesuffix("lo") + "hi", value >> 32)
        value &= 0xFFFF_FFFF
    offset, form = SUPERBLOCK_FIELDS[name]
    struct.pack_into("<" + form, raw, offset, value)


def get(fields: dict[str, Any], name: str) -> int:
    """Return the 64-bit number whose lower half is the field `name`, which ends in `_lo`."""
    return int(fields[name] | fields[name.removesuffix("lo") + "hi"] << 32)


def seal(raw: bytearray) -> bytes:
    """Put the checksum into the superblock and return its bytes."""
    struct.pack_into("<I", raw, SUPERBLOCK_CHECKSUM_OFFSET, superblock_checksum(raw))
    return bytes(raw)
