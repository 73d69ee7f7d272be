"""Block groups: how many there are, which have a superblock, their descriptors and bitmaps.

struct ext4_group_desc in fs/ext4/ext4.h; fs/ext4/balloc.c, fs/ext4/ialloc.c. Groups of our disks have 32768 blocks.
"""

from __future__ import annotations

from typing import NamedTuple

from rootdisk.ext4.checksum import descriptor_checksum
from rootdisk.ext4.format import BLOCK, BLOCKS_PER_GROUP, DESC_SIZE, DESCS_PER_BLOCK, GROUP_DESC, SUPERBLOCK_OFFSET

# As mke2fs: a last group that has fewer blocks beside its own metadata is left out.
LAST_GROUP_MIN_FREE = 64


def group_count(blocks: int) -> int:
    """Return how many groups a disk of so many blocks has."""
    return -(-blocks // BLOCKS_PER_GROUP)


def descriptor_blocks(groups: int) -> int:
    """Return how many blocks the descriptors of so many groups take."""
    return -(-groups // DESCS_PER_BLOCK)


def superblock_groups(groups: int) -> tuple[int, ...]:
    """Return the groups that begin with a superblock, ascending: 0, 1 and the powers of 3, 5 and 7.

    fs/ext4/balloc.c, ext4_bg_has_super(), sparse_super.
    """
    powers = {0, 1}
    for prime in (3, 5, 7):
        power = prime
        while power < groups:
            powers.add(power)
            power *= prime
    return tuple(sorted(group for group in powers if group < groups))


def superblock_place(group: int) -> int:
    """Return the byte of the disk at which the superblock of `group` stands."""
    return group * BLOCKS_PER_GROUP * BLOCK or SUPERBLOCK_OFFSET


def pack_bitmap(bits: int, size: int) -> bytes:
    """Return the block of a bitmap. Bits past `size`, the number of blocks or inodes, are set."""
    return (bits | ((1 << (8 * BLOCK - size)) - 1) << size).to_bytes(BLOCK, "little")


class GroupDescriptor(NamedTuple):
    """A group's descriptor. Places are block numbers; `flags` are BG_*; `unused_inodes` end the inode table and were never used."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_blocks: int = 0
    free_inodes: int = 0
    directories: int = 0
    flags: int = 0
    block_bitmap_checksum: int = 0
    inode_bitmap_checksum: int = 0
    unused_inodes: int = 0

    @classmethod
    def unpack(cls, raw: bytes) -> GroupDescriptor:
        """Return the descriptor in `raw`; the high halves of a short one count as zero. The checksum is not compared."""
        low = GROUP_DESC.unpack(raw[:DESC_SIZE].ljust(DESC_SIZE, b"\0"))
        high = low[12:]
        return cls(
            low[0] | high[0] << 32,
            low[1] | high[1] << 32,
            low[2] | high[2] << 32,
            low[3] | high[3] << 16,
            low[4] | high[4] << 16,
            low[5] | high[5] << 16,
            low[6],
            low[8] | high[8] << 16,
            low[9] | high[9] << 16,
            low[10] | high[6] << 16,
        )

    def pack(self, seed: int, group: int) -> bytes:
        """Return the 64 bytes of the descriptor of `group`, with their checksum; `seed` is the disk's."""
        fields = [
            self.block_bitmap & 0xFFFF_FFFF,
            self.inode_bitmap & 0xFFFF_FFFF,
            self.inode_table & 0xFFFF_FFFF,
            self.free_blocks & 0xFFFF,
            self.free_inodes & 0xFFFF,
            self.directories & 0xFFFF,
            self.flags,
            0,  # bg_exclude_bitmap: of no released kernel
            self.block_bitmap_checksum & 0xFFFF,
            self.inode_bitmap_checksum & 0xFFFF,
            self.unused_inodes & 0xFFFF,
            0,
            self.block_bitmap >> 32,
            self.inode_bitmap >> 32,
            self.inode_table >> 32,
            self.free_blocks >> 16,
            self.free_inodes >> 16,
            self.directories >> 16,
            self.unused_inodes >> 16,
            0,
            self.block_bitmap_checksum >> 16,
            self.inode_bitmap_checksum >> 16,
            0,
        ]
        fields[11] = descriptor_checksum(seed, group, GROUP_DESC.pack(*fields))
        return GROUP_DESC.pack(*fields)
