"""Block and inode bitmaps and the group descriptors that sum them up; fs/ext4/balloc.c, ialloc.c."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from imagetool.ext4.geometry import Geometry
from rootdisk.ext4.checksum import bitmap_checksum
from rootdisk.ext4.format import (
    BG_BLOCK_UNINIT,
    BG_INODE_UNINIT,
    BG_INODE_ZEROED,
    BLOCK,
    BLOCKS_PER_GROUP,
    INODES_PER_BLOCK,
)
from rootdisk.ext4.groups import GroupDescriptor, pack_bitmap


class Groups(NamedTuple):
    """The groups of a disk.

    `descriptors` are the table's bytes, `bitmaps` (block, content) of every initialised one and, as zeros, of those
    between them in a flex group: they are one chunk. `tables` are used blocks.
    """

    descriptors: bytes
    bitmaps: list[tuple[int, bytes]]
    tables: list[tuple[int, int, int]]  # group, first block, blocks with used inodes
    free_blocks: int
    free_inodes: int


def groups(
    geometry: Geometry, runs: Iterable[tuple[int, int]], used_inodes: bytes, directories: Iterable[int], seed: int
) -> Groups:
    """Sum up which blocks and inodes are used.

    `runs` are all runs of used blocks (first, number), but for the fixed metadata. `used_inodes` has a byte for
    each inode number, 1 if it is used; it may end early: no higher number is. `directories` are inode numbers, `seed` is the disk's.
    """
    used = _used_blocks(geometry, runs)
    per_group = geometry.inodes_per_group
    directory_count = [0] * geometry.groups
    for number in directories:
        directory_count[(number - 1) // per_group] += 1
    out, bitmaps, tables = [], [], []
    free_blocks_all = free_inodes_all = 0
    for group in range(geometry.groups):
        flags = BG_INODE_ZEROED
        blocks = geometry.group_blocks(group)
        block_checksum = inode_checksum = 0
        bits = used.get(group, 0) | ((1 << geometry.fixed_blocks(group)) - 1)
        free_blocks = blocks - bits.bit_count()
        if group not in used and group % geometry.flex and group != geometry.groups - 1:
            flags |= BG_BLOCK_UNINIT
        else:
            content = pack_bitmap(bits, blocks)
            bitmaps.append((geometry.block_bitmap(group), content))
            block_checksum = bitmap_checksum(seed, content, BLOCKS_PER_GROUP)
        present = used_inodes[group * per_group + 1 : (group + 1) * per_group + 1]
        taken = sum(present)
        unused = per_group
        if not taken:
            flags |= BG_INODE_UNINIT
        else:
            top = len(present) - present[::-1].index(1)
            unused = per_group - top
            tables.append((group, geometry.inode_table(group), -(-top // INODES_PER_BLOCK)))
            inode_bits = int("".join("1" if there else "0" for there in reversed(present)), 2)
            content = pack_bitmap(inode_bits, per_group)
            bitmaps.append((geometry.inode_bitmap(group), content))
            inode_checksum = bitmap_checksum(seed, content, per_group)
        free_blocks_all += free_blocks
        free_inodes_all += per_group - taken
        descriptor = GroupDescriptor(
            geometry.block_bitmap(group),
            geometry.inode_bitmap(group),
            geometry.inode_table(group),
            free_blocks,
            per_group - taken,
            directory_count[group],
            flags,
            block_checksum,
            inode_checksum,
            unused,
        )
        out.append(descriptor.pack(seed, group))
    bitmaps.sort()
    zeros = [
        (place, bytes(BLOCK))
        for (before, _), (after, _) in itertools.pairwise(bitmaps)
        if after - before <= geometry.flex
        for place in range(before + 1, after)
    ]
    table = b"".join(out).ljust(geometry.descriptor_blocks * BLOCK, b"\0")
    return Groups(table, bitmaps + zeros, tables, free_blocks_all, free_inodes_all)


def _used_blocks(geometry: Geometry, runs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Bits of used blocks by group."""
    used: dict[int, int] = {}
    for start, count in runs:
        while count:
            group, first = divmod(start, BLOCKS_PER_GROUP)
            length = min(count, BLOCKS_PER_GROUP - first)
            used[group] = used.get(group, 0) | ((1 << length) - 1) << first
            start += length
            count -= length
    return used
