"""Extent trees: a file's runs as the 60 bytes of i_block and, past four runs, blocks of a tree; fs/ext4/ext4_extents.h."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rootdisk.ext4.checksum import extent_block_checksum
from rootdisk.ext4.format import (
    BLOCK,
    EXT4_EXT_MAGIC,
    EXTENT,
    EXTENT_HEADER,
    EXTENT_INDEX,
    EXTENT_MAX_BLOCKS,
    EXTENT_TAIL_OFFSET,
    EXTENTS_INLINE,
    EXTENTS_PER_BLOCK,
    I_BLOCK_BYTES,
    ONE_EXTENT,
)

Run = tuple[int, int, int]  # first block of the file, first block of the disk, number of blocks


def merged(runs: Iterable[Run]) -> list[Run]:
    """Return `runs`, which ascend, with neighbours joined and none longer than an extent may be (32768 blocks)."""
    joined: list[list[int]] = []
    for logical, physical, count in runs:
        if joined:
            last = joined[-1]
            if last[0] + last[2] == logical and last[1] + last[2] == physical:
                last[2] += count
                continue
        joined.append([logical, physical, count])
    return [
        (logical + done, physical + done, min(EXTENT_MAX_BLOCKS, count - done))
        for logical, physical, count in joined
        for done in range(0, count, EXTENT_MAX_BLOCKS)
    ]


def tree_blocks(extents: int) -> int:
    """Count the blocks that a tree of so many extents needs beside i_block."""
    total = 0
    while extents > EXTENTS_INLINE:
        extents = -(-extents // EXTENTS_PER_BLOCK)
        total += extents
    return total


def build(runs: Sequence[Run], blocks: Sequence[int], seed: Callable[[], int]) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Return i_block's 60 bytes, and the tree's blocks as (disk block, content); fs/ext4/extents.c.

    `runs` come from merged(); `blocks` are tree_blocks(len(runs)) disk blocks for the tree. `seed` returns the inode's
    checksum seed and is only called if there are such blocks.
    """
    if len(runs) == 1:  # nearly every file
        logical, physical, count = runs[0]
        return ONE_EXTENT.pack(
            EXT4_EXT_MAGIC, 1, EXTENTS_INLINE, 0, 0, logical, count, physical >> 32, physical & 0xFFFF_FFFF
        ), []
    entries = [EXTENT.pack(logical, count, physical >> 32, physical & 0xFFFF_FFFF) for logical, physical, count in runs]
    firsts = [run[0] for run in runs]
    depth = 0
    made: list[tuple[int, bytes]] = []
    waiting = iter(blocks)
    while len(entries) > EXTENTS_INLINE:
        above, above_firsts = [], []
        for start in range(0, len(entries), EXTENTS_PER_BLOCK):
            part = entries[start : start + EXTENTS_PER_BLOCK]
            place = next(waiting)
            content = bytearray(BLOCK)
            EXTENT_HEADER.pack_into(content, 0, EXT4_EXT_MAGIC, len(part), EXTENTS_PER_BLOCK, depth, 0)
            content[EXTENT_HEADER.size : EXTENT_HEADER.size + EXTENT.size * len(part)] = b"".join(part)
            tail = extent_block_checksum(seed(), content[:EXTENT_TAIL_OFFSET])
            content[EXTENT_TAIL_OFFSET:] = tail.to_bytes(4, "little")
            made.append((place, bytes(content)))
            above.append(EXTENT_INDEX.pack(firsts[start], place & 0xFFFF_FFFF, place >> 32, 0))
            above_firsts.append(firsts[start])
        entries, firsts = above, above_firsts
        depth += 1
    root = EXTENT_HEADER.pack(EXT4_EXT_MAGIC, len(entries), EXTENTS_INLINE, depth, 0) + b"".join(entries)
    return root.ljust(I_BLOCK_BYTES, b"\0"), made
