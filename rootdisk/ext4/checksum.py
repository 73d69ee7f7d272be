"""crc32c as ext4 uses it: the raw state is carried from part to part, without the final inversion.

fs/ext4/ext4.h, ext4_chksum(); the polynomial is Castagnoli's, computed natively by google-crc32c.
"""

from __future__ import annotations

import struct

import google_crc32c

_ONES = 0xFFFF_FFFF


def crc(state: int, data: bytes | bytearray) -> int:
    """The state after `data`; the first state is 0xFFFFFFFF or a seed made by this function."""
    return int(google_crc32c.extend(state ^ _ONES, bytes(data))) ^ _ONES


def disk_seed(uuid: bytes) -> int:
    """What every metadata checksum of a disk starts from: s_csum_seed."""
    return crc(_ONES, uuid)


def inode_seed(seed: int, number: int, generation: int = 0) -> int:
    """What checksums of an inode and of its directory and extent blocks start from: i_csum_seed."""
    return crc(seed, struct.pack("<II", number, generation))
