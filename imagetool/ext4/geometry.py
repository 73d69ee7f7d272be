"""The places of a disk's fixed metadata, which its size and number of inodes decide; and the space between it.

Groups of 128 MiB; up to 16 of them share a flex group, whose bitmaps and inode tables lie together at its start.
Backups of superblock and descriptors stand in groups 1 and the powers of 3, 5 and 7 (sparse_super). The kernel may
grow the disk online: no resize inode is needed for that, it goes over to meta_bg.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from rootdisk.artifact.format import DISK_MAX_BYTES
from rootdisk.errors import BadInput
from rootdisk.ext4.format import BLOCK, BLOCKS_PER_GROUP, INODES_PER_BLOCK
from rootdisk.ext4.groups import LAST_GROUP_MIN_FREE, descriptor_blocks, group_count, superblock_groups

DISK_MIN_BYTES = 16 << 20
BYTES_PER_INODE = 16384  # mke2fs's usual ratio: room for the guest's own files
SPARE_INODES = 1024


@dataclass(frozen=True)
class Geometry:
    """The sizes of a disk's parts in blocks, and their places as block numbers."""

    blocks: int
    inodes_per_group: int
    flex: int  # groups in a flex group, a power of two
    journal_blocks: int

    @classmethod
    def of(cls, size: int, inodes: int) -> Geometry:
        """Return the geometry of a disk of `size` bytes with `inodes` inodes and some for the guest.

        Raises:
            BadInput: `size` is not 16 MiB to 16 TiB.
            TooSmall: so many inodes need a larger disk.
        """
        if not DISK_MIN_BYTES <= size <= DISK_MAX_BYTES:
            raise BadInput(f"size: {size} bytes", "a disk is 16 MiB to 16 TiB")
        blocks = size // BLOCK
        groups = group_count(blocks)
        wanted = max(inodes + inodes // 8 + SPARE_INODES, min(size // BYTES_PER_INODE, 0xFFFF_0000))
        per_group = -(-wanted // groups)
        per_group = -(-per_group // INODES_PER_BLOCK) * INODES_PER_BLOCK
        if per_group > BLOCKS_PER_GROUP:
            if inodes > groups * BLOCKS_PER_GROUP - 64:
                more = -(-(inodes + 64) // BLOCKS_PER_GROUP) - 1  # full groups, and one that may be smaller
                raise TooSmall((more * BLOCKS_PER_GROUP + 1) * BLOCK)
            per_group = BLOCKS_PER_GROUP
        table = per_group // INODES_PER_BLOCK
        flex = 16
        while flex > 1 and flex * (table + 2) + 1 + descriptor_blocks(groups) > BLOCKS_PER_GROUP // 2:
            flex //= 2
        journal = 1024 if size < 128 << 20 else 4096 if size < 1 << 30 else 8192 if size < 16 << 30 else 16384
        geometry = cls(blocks, per_group, flex, journal)
        last = blocks - (groups - 1) * BLOCKS_PER_GROUP
        if groups > 1 and last < geometry.fixed_blocks(groups - 1) + LAST_GROUP_MIN_FREE:
            # As mke2fs does: a last group that could hold little but its own metadata is left out.
            return cls.of((groups - 1) * BLOCKS_PER_GROUP * BLOCK, inodes)
        return geometry

    @cached_property
    def groups(self) -> int:
        """The number of block groups."""
        return group_count(self.blocks)

    @cached_property
    def inodes(self) -> int:
        """The number of inodes of all groups: s_inodes_count."""
        return self.groups * self.inodes_per_group

    @cached_property
    def descriptor_blocks(self) -> int:
        """The number of blocks of all group descriptors."""
        return descriptor_blocks(self.groups)

    @cached_property
    def table_blocks(self) -> int:
        """The number of blocks of one group's inode table."""
        return self.inodes_per_group // INODES_PER_BLOCK

    @cached_property
    def backups(self) -> tuple[int, ...]:
        """The groups that start with superblock and descriptors, ascending; group 0 has the primary ones."""
        return superblock_groups(self.groups)

    def base_blocks(self, group: int) -> int:
        """Count the blocks of superblock and descriptors at the start of `group`."""
        return 1 + self.descriptor_blocks if group in self._backups else 0

    def fixed_blocks(self, group: int) -> int:
        """Count all blocks of fixed metadata at the start of `group`."""
        if group % self.flex:
            return self.base_blocks(group)
        return self.base_blocks(group) + min(self.flex, self.groups - group) * (self.table_blocks + 2)

    def block_bitmap(self, group: int) -> int:
        """Return the block number of the block bitmap of `group`."""
        return self._flex_start(group) + group % self.flex

    def inode_bitmap(self, group: int) -> int:
        """Return the block number of the inode bitmap of `group`."""
        return self._flex_start(group) + self._flex_groups(group) + group % self.flex

    def inode_table(self, group: int) -> int:
        """Return the first block number of the inode table of `group`."""
        return self._flex_start(group) + 2 * self._flex_groups(group) + group % self.flex * self.table_blocks

    def group_blocks(self, group: int) -> int:
        """Count the blocks of `group`: the last may be shorter."""
        return min(BLOCKS_PER_GROUP, self.blocks - group * BLOCKS_PER_GROUP)

    @cached_property
    def overhead(self) -> int:
        """The number of blocks that no file can have: s_overhead_clusters, counted as mke2fs does.

        If it is there, the kernel does not count again at each mount.
        """
        backups = len(self.backups) * (1 + self.descriptor_blocks)
        return self.groups * (self.table_blocks + 2) + backups + self.journal_blocks

    @cached_property
    def fixed(self) -> list[tuple[int, int]]:
        """Return the runs of fixed metadata, (first block, length), ascending."""
        leaders = set(range(0, self.groups, self.flex)) | self._backups
        return [(group * BLOCKS_PER_GROUP, self.fixed_blocks(group)) for group in sorted(leaders)]

    @cached_property
    def _backups(self) -> frozenset[int]:
        return frozenset(self.backups)

    def _flex_start(self, group: int) -> int:
        leader = group - group % self.flex
        return leader * BLOCKS_PER_GROUP + self.base_blocks(leader)

    def _flex_groups(self, group: int) -> int:
        leader = group - group % self.flex
        return min(self.flex, self.groups - leader)


class TooSmall(Exception):
    """The disk cannot hold the image; fewer than `needed` bytes are never enough."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


class Space:
    """Free blocks, given out in ascending order around the fixed metadata. The end of the disk is not checked here."""

    def __init__(self, geometry: Geometry) -> None:
        self._fixed = geometry.fixed
        self._starts = [start for start, _ in self._fixed]
        self.next = self._fixed[0][1]

    def take(self, count: int, align: int = 1) -> int:
        """Take `count` contiguous blocks and return the first, a multiple of `align`."""
        start = self.next
        while True:
            start = -(-start // align) * align
            moved = self._past(start, count)
            if moved == start:
                self.next = start + count
                return start
            start = moved

    def take_runs(self, count: int) -> list[tuple[int, int]]:
        """Take `count` blocks and return them as runs (first, length), as few as the fixed metadata allows."""
        runs = []
        while count:
            start = self._past(self.next, 1)
            place = bisect_right(self._starts, start)
            room = self._starts[place] - start if place < len(self._starts) else count
            length = min(count, room)
            runs.append((start, length))
            self.next = start + length
            count -= length
        return runs

    def align(self, blocks: int) -> None:
        """Continue at a multiple of `blocks`."""
        self.next = -(-self.next // blocks) * blocks

    def _past(self, start: int, count: int) -> int:
        """Return `start`, or if `count` blocks from there would overlap fixed metadata, the first block after it."""
        place = bisect_right(self._starts, start)
        if place:
            first, length = self._fixed[place - 1]
            if start < first + length:
                return first + length
        if place < len(self._starts) and start + count > self._starts[place]:
            first, length = self._fixed[place]
            return first + length
        return start
