"""The owners of the disk's blocks. Blocks are given out in ascending order; inodes look theirs up when they are written."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from imagetool.ext4 import extents
from imagetool.ext4.extents import Run
from imagetool.ext4.geometry import Geometry, Space
from rootdisk.ext4.format import EXTENTS_INLINE


class Blocks:
    """The blocks of each of `inodes` inodes, and all blocks in use."""

    def __init__(self, geometry: Geometry, inodes: int) -> None:
        self.space = Space(geometry)
        # Where each inode's blocks are: nearly all have one run from their first block on, which takes little here.
        self.starts = array("Q", bytes(8 * inodes))
        self.counts = array("I", bytes(4 * inodes))
        self.other_runs: dict[int, Sequence[Run]] = {}
        self.scattered: list[int] = []  # inodes whose runs need a tree
        self.used: list[tuple[int, int]] = []  # first block, number
        self._used_end = -1

    def take(self, count: int) -> list[Run]:
        """Take `count` blocks for one file and return its runs, ascending."""
        runs, logical = [], 0
        for start, length in self.space.take_runs(count):
            runs.append((logical, start, length))
            logical += length
        return extents.merged(runs)

    def take_one(self) -> int:
        """Take a block that does not hold an inode's data, and return its number."""
        place = self.space.take(1)
        self.use(place, 1)
        return place

    def own(self, number: int, runs: Sequence[Run]) -> None:
        """Give `runs` to inode `number`."""
        if len(runs) == 1 and not runs[0][0]:
            _, self.starts[number], self.counts[number] = runs[0]
        else:
            self.other_runs[number] = runs
            if len(runs) > EXTENTS_INLINE:
                self.scattered.append(number)
        for _, start, length in runs:
            self.use(start, length)

    def use(self, start: int, length: int) -> None:
        """Mark `length` blocks from `start` on as used. Most calls continue the last run."""
        if start == self._used_end:
            first, count = self.used[-1]
            self.used[-1] = (first, count + length)
        else:
            self.used.append((start, length))
        self._used_end = start + length

    def runs(self, number: int) -> Sequence[Run]:
        """Return the runs of inode `number`, ascending; none if it has no blocks."""
        start = self.starts[number]
        return ((0, start, self.counts[number]),) if start else self.other_runs.get(number, ())

    def count(self, number: int) -> int:
        """Count the blocks of data of inode `number`."""
        return self.counts[number] or sum([run[2] for run in self.other_runs.get(number, ())])
