"""Metadata checksums of ext4, one function for each kind of block.

ext4 carries the raw state of a crc32c from part to part, without the final inversion: fs/ext4/ext4.h, ext4_chksum(). The
polynomial is Castagnoli's. The library google-crc32c is used if it is installed, because the writer needs its speed. The
runner does without it, for the few kilobytes of a larger disk.
"""

from __future__ import annotations

import struct

from rootdisk.ext4.format import DESC_CHECKSUM_OFFSET, SUPERBLOCK_CHECKSUM_OFFSET

ONES = 0xFFFF_FFFF
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(value)
    return tuple(table)


_TABLE: tuple[int, ...] = ()


def table_crc(state: int, data: bytes | bytearray) -> int:
    """Return the same as `crc`, in pure Python: about 10 MB/s."""
    global _TABLE
    table = _TABLE = _TABLE or _table()
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    return state


try:
    from google_crc32c import extend
except ImportError:
    crc = table_crc
else:

    def crc(state: int, data: bytes | bytearray) -> int:
        """Return the state after `data`. The first state is 0xFFFFFFFF or a seed that this function made."""
        return int(extend(state ^ ONES, bytes(data))) ^ ONES


def disk_seed(uuid: bytes) -> int:
    """Return the start of every metadata checksum of a disk: s_csum_seed; fs/ext4/super.c."""
    return crc(ONES, uuid)


def inode_seed(seed: int, number: int, generation: int = 0) -> int:
    """Return the start of an inode's checksum, and of its directory and extent blocks': i_csum_seed; fs/ext4/inode.c."""
    return crc(seed, struct.pack("<II", number, generation))


def superblock_checksum(raw: bytes | bytearray) -> int:
    """Return s_checksum of a superblock of 1024 bytes: fs/ext4/super.c, ext4_superblock_csum()."""
    return crc(ONES, raw[:SUPERBLOCK_CHECKSUM_OFFSET])


def descriptor_checksum(seed: int, group: int, raw: bytes | bytearray) -> int:
    """Return bg_checksum of a group's descriptor: fs/ext4/super.c, ext4_group_desc_csum()."""
    rest = raw[DESC_CHECKSUM_OFFSET + 2 :]
    return crc(seed, _U32.pack(group) + raw[:DESC_CHECKSUM_OFFSET] + b"\0\0" + rest) & 0xFFFF


def bitmap_checksum(seed: int, bitmap: bytes, bits: int) -> int:
    """Return the checksum of a bitmap of `bits` blocks or inodes: fs/ext4/bitmap.c."""
    return crc(seed, bitmap[: bits // 8])


def extent_block_checksum(inode_seed: int, raw: bytes | bytearray) -> int:
    """Return et_checksum; `raw` ends before it: fs/ext4/extents.c, ext4_extent_block_csum()."""
    return crc(inode_seed, raw)


def directory_block_checksum(inode_seed: int, raw: bytes) -> int:
    """Return det_checksum of a block of names; `raw` ends before its tail: fs/ext4/namei.c, ext4_dirblock_csum()."""
    return crc(inode_seed, raw)


def index_block_checksum(inode_seed: int, used: bytes, tail: bytes) -> int:
    """Return dt_checksum of a directory's index block: fs/ext4/namei.c, ext4_dx_csum().

    `used` is the block up to its last entry, `tail` the four bytes before the checksum (dt_reserved).
    """
    return crc(crc(crc(inode_seed, used), tail), bytes(4))


def xattr_block_checksum(seed: int, place: int, raw: bytes | bytearray) -> int:
    """Return h_checksum of the block at disk block `place`: fs/ext4/xattr.c, ext4_xattr_block_csum().

    The field itself counts as zero, whatever `raw` has in it.
    """
    state = crc(seed, _U64.pack(place))
    return crc(state, raw[:16] + bytes(4) + raw[20:])
