"""Divide a disk into a grid of equal cells. A hole longer than a cell takes a single cell, so terabytes fit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

CELL_MIN_BYTES = 4096


class Run(NamedTuple):
    """A range of `length` bytes from `offset` on that have the same kind."""

    offset: int
    length: int
    kind: int

    @property
    def end(self) -> int:
        """The end offset, exclusive."""
        return self.offset + self.length


class Cell(NamedTuple):
    """The bytes `start` to `end` of the disk: data and short holes, or a long hole."""

    start: int
    end: int
    hole: bool


def grid(runs: Sequence[Run], disk_size: int, most: int) -> list[Cell]:
    """Return at most `most` cells for a disk with data in `runs`. All cells with data have the same size, a power of 2."""
    size = CELL_MIN_BYTES
    while True:
        cells = _cells(runs, disk_size, size, most)
        if cells is not None:
            return cells
        size *= 2


def _cells(runs: Sequence[Run], disk_size: int, size: int, most: int) -> list[Cell] | None:
    """Return cells of `size` bytes, or None if there are more than `most`."""
    cells: list[Cell] = []
    place = 0  # number of the next cell
    for run in sorted(runs):
        first, last = run.offset // size, (run.end - 1) // size
        if last < place:
            continue
        if first > place:
            cells.append(Cell(place * size, first * size, True))
        first = max(first, place)
        if len(cells) + last - first >= most:
            return None
        cells += [Cell(n * size, min((n + 1) * size, disk_size), False) for n in range(first, last + 1)]
        place = last + 1
    if place * size < disk_size:
        cells.append(Cell(place * size, disk_size, True))
    return cells if len(cells) <= most else None


def weights(cells: Sequence[Cell], runs: Iterable[Run]) -> list[dict[int, int]]:
    """Return for each cell the bytes of each kind in it. Runs may overlap."""
    totals: list[dict[int, int]] = [{} for _ in cells]
    starts = [cell.start for cell in cells]
    for run in runs:
        at = max(0, bisect_right(starts, run.offset) - 1)
        while at < len(cells) and cells[at].start < run.end:
            length = min(run.end, cells[at].end) - max(run.offset, cells[at].start)
            if length > 0:
                totals[at][run.kind] = totals[at].get(run.kind, 0) + length
            at += 1
    return totals


def without(runs: Iterable[Run], holes: Sequence[Run]) -> list[Run]:
    """Return the parts of `runs` outside `holes`, which must be sorted and must not overlap."""
    starts = [hole.offset for hole in holes]
    parts = []
    for run in runs:
        at, place = run.offset, max(0, bisect_right(starts, run.offset) - 1)
        while at < run.end:
            if place >= len(holes) or holes[place].offset >= run.end:
                parts.append(Run(at, run.end - at, run.kind))
                break
            if holes[place].offset > at:
                parts.append(Run(at, holes[place].offset - at, run.kind))
            at = max(at, holes[place].end)
            place += 1
    return parts
