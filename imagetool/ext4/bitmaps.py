"""Block and inode bitmaps and the group descriptors that sum them up; fs/ext4/balloc.c, ialloc.c."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from typing import NamedTuple

from imagetool.ext4.geometry import Geometry
from rootdisk.ext4.checksum import crc
from rootdisk.ext4.format import (
    BG_BLOCK_UNINIT,
    BG_INODE_UNINIT,
    BG_INODE_ZEROED,
    BLOCK,
    BLOCKS_PER_GROUP,
    GROUP_DESC,
    INODES_PER_BLOCK,
)


class Groups(NamedTuple):
    """`descriptors` are the table's bytes, `bitmaps` (block, content) of every initialised one and, as zeros, of those
    between them in a flex group: they are one chunk. `tables` are used blocks."""

    descriptors: bytes
    bitmaps: list[tuple[int, bytes]]
    tables: list[tuple[int, int, int]]  # group, first block, blocks with used inodes
    free_blocks: int
    free_inodes: int


def groups(
    geometry: Geometry, runs: Iterable[tuple[int, int]], used_inodes: list[bool], directories: Iterable[int], seed: int
) -> Groups:
    """From all runs of used blocks (first, number; fixed metadata not among them) and which inode numbers are used.

    `used_inodes` may end early: no higher number is used.
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
            bits |= ((1 << (BLOCKS_PER_GROUP - blocks)) - 1) << blocks
            content = bits.to_bytes(BLOCK, "little")
            bitmaps.append((geometry.block_bitmap(group), content))
            block_checksum = crc(seed, content)
        present = used_inodes[group * per_group + 1 : (group + 1) * per_group + 1]
        taken = sum(present)
        unused = per_group
        if not taken:
            flags |= BG_INODE_UNINIT
        else:
            top = len(present) - present[::-1].index(True)
            unused = per_group - top
            tables.append((group, geometry.inode_table(group), -(-top // INODES_PER_BLOCK)))
            inode_bits = int("".join("1" if there else "0" for there in reversed(present)), 2)
            inode_bits |= ((1 << (8 * BLOCK - per_group)) - 1) << per_group
            content = inode_bits.to_bytes(BLOCK, "little")
            bitmaps.append((geometry.inode_bitmap(group), content))
            inode_checksum = crc(seed, content[: per_group // 8])
        free_blocks_all += free_blocks
        free_inodes_all += per_group - taken
        places = (geometry.block_bitmap(group), geometry.inode_bitmap(group), geometry.inode_table(group))
        counts = (free_blocks, per_group - taken, directory_count[group])
        descriptor = bytearray(
            GROUP_DESC.pack(
                *(place & 0xFFFF_FFFF for place in places),
                *(count & 0xFFFF for count in counts),
                flags,
                0,
                block_checksum & 0xFFFF,
                inode_checksum & 0xFFFF,
                unused & 0xFFFF,
                0,
                *(place >> 32 for place in places),
                *(count >> 16 for count in counts),
                unused >> 16,
                0,
                block_checksum >> 16,
                inode_checksum >> 16,
                0,
            )
        )
        checksum = crc(crc(seed, struct.pack("<I", group)), descriptor)
        struct.pack_into("<H", descriptor, 0x1E, checksum & 0xFFFF)
        out.append(bytes(descriptor))
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
