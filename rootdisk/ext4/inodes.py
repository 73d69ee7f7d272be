"""Fields of an inode that are stored in pieces: times and device numbers; struct ext4_inode in fs/ext4/ext4.h."""

from __future__ import annotations

import struct

from rootdisk.ext4.format import I_BLOCK_BYTES


def encode_time(nanoseconds: int) -> tuple[int, int]:
    """Return the two words of a time, such as i_mtime and i_mtime_extra: EXT4_EPOCH_BITS, ext4_encode_extra_time().

    The second has two bits past the first's signed 32, then the nanoseconds.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    low = seconds & 0xFFFF_FFFF
    return low, rest << 2 | (seconds - (low - (1 << 32) if low >> 31 else low)) >> 32 & 3


def decode_time(low: int, extra: int) -> int:
    """Return the nanoseconds since 1970 of the two words of a time; `extra` is 0 in a small inode."""
    seconds = low - (1 << 32) if low >> 31 else low
    return (seconds + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)


def encode_device(major: int, minor: int) -> bytes:
    """Return i_block of a device: the old 8:8 form if it fits, else the new 12:20; linux/kdev_t.h, new_encode_dev().

    ValueError: a number past what ext4 can hold.
    """
    if major < 256 and minor < 256:
        return struct.pack("<I", major << 8 | minor).ljust(I_BLOCK_BYTES, b"\0")
    if major >= 1 << 12 or minor >= 1 << 20:
        raise ValueError(f"device {major}:{minor} is past what ext4 can hold (4095:1048575)")
    return struct.pack("<II", 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12).ljust(I_BLOCK_BYTES, b"\0")


def decode_device(i_block: bytes) -> tuple[int, int]:
    """Return major and minor number of a device."""
    old, new = struct.unpack_from("<II", i_block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return (new & 0xFFF00) >> 8, (new & 0xFF) | (new >> 12 & 0xFFF00)
