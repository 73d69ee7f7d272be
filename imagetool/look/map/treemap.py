"""Squarified treemaps: sizes as nested rectangles; Bruls, Huizing and van Wijk 2000. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle at (x, y), in units of the picture."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        """The area."""
        return self.width * self.height

    def inset(self, head: float, rim: float) -> Box:
        """Return the rectangle inside a border of width `rim`, with `head` more at the top."""
        width, height = max(0.0, self.width - 2 * rim), max(0.0, self.height - 2 * rim - head)
        return Box(self.x + rim, self.y + rim + head, width, height)


@dataclass(slots=True)
class Directory:
    """A directory with the sizes of everything below it, by kind, and its entries."""

    name: str
    sizes: dict[int, int] = field(default_factory=dict)  # by kind
    count: int = 0  # of files below
    below: dict[str, Directory] = field(default_factory=dict)
    is_file: bool = False

    @property
    def size(self) -> int:
        """The bytes of everything below."""
        return sum(self.sizes.values())

    @property
    def kind(self) -> int:
        """The kind with the most bytes."""
        return max(self.sizes, key=lambda kind: (self.sizes[kind], -kind))


class Tile(NamedTuple):
    """A rectangle of the picture: a file, a directory with tiles in it (`open`), or several entries that are too small."""

    box: Box
    path: str
    size: int
    files: int
    kind: int
    depth: int
    what: str  # file, directory, open, rest
    label: str  # path from the enclosing directory


def tree(files: Iterable[tuple[str, int, int]]) -> Directory:
    """Build the directory tree of (path, bytes, kind), with sums."""
    top = Directory("")
    for path, size, kind in files:
        place = top
        for name in ("", *path.strip("/").split("/")):
            if name:
                place = place.below.setdefault(name, Directory(name))
            place.sizes[kind] = place.sizes.get(kind, 0) + size
            place.count += 1
        place.is_file = True
    return top


def tiles(top: Directory, box: Box, *, most: int, head: float, rim: float) -> Iterator[Tile]:
    """Yield about `most` tiles for `top` in `box`, outer ones first. `head` is the height of a directory name."""
    if top.size and box.area:
        yield from _tiles(top, "", box, box.area / most, head, rim, 0)


def _tiles(
    place: Directory, path: str, box: Box, smallest: float, head: float, rim: float, depth: int
) -> Iterator[Tile]:
    label = place.name
    while depth and len(place.below) == 1:  # join the names of a directory and its only entry
        (place,) = place.below.values()
        label += f"/{place.name}"
    name = f"{path}/{label}" if depth else ""
    shown = name or "/"
    if place.is_file:
        yield Tile(box, shown, place.size, 1, place.kind, depth, "file", label)
        return
    inner = box.inset(head, rim) if depth else box
    if inner.area < 4 * smallest or inner.width < 2 * head or inner.height < 2 * head:
        yield Tile(box, shown, place.size, place.count, place.kind, depth, "directory", f"{label}/")
        return
    yield Tile(box, shown, place.size, place.count, place.kind, depth, "open", label)
    children = sorted((child for child in place.below.values() if child.size), key=lambda c: (-c.size, c.name))
    enough = smallest * place.size / inner.area
    large = [child for child in children if child.size >= enough]
    small = children[len(large) :]
    rest = sum(child.size for child in small)
    boxes = squarified([*(child.size for child in large), *([rest] if rest else [])], inner)
    for child, part in zip(large, boxes, strict=False):
        yield from _tiles(child, name, part, smallest, head, rim, depth + 1)
    if rest:
        sizes: dict[int, int] = {}
        for child in small:
            for kind, size in child.sizes.items():
                sizes[kind] = sizes.get(kind, 0) + size
        kind = Directory("", sizes).kind
        count = sum(child.count for child in small)
        yield Tile(boxes[-1], shown, rest, count, kind, depth + 1, "rest", f"+{count:,}")


def squarified(sizes: Sequence[int], box: Box) -> list[Box]:
    """Fill `box` with rectangles in the order of `sizes`, which must descend. They are as square as rows allow."""
    boxes: list[Box] = []
    left = float(sum(sizes))
    at = 0
    while at < len(sizes) and left:
        scale = box.area / left
        short = min(box.width, box.height)
        row = 1
        while at + row < len(sizes) and _worst(sizes[at : at + row + 1], scale, short) <= _worst(
            sizes[at : at + row], scale, short
        ):
            row += 1
        sums = sum(sizes[at : at + row])
        thick = sums * scale / short if short else 0.0
        along = 0.0
        for size in sizes[at : at + row]:
            length = short * size / sums
            if box.width >= box.height:
                boxes.append(Box(box.x, box.y + along, thick, length))
            else:
                boxes.append(Box(box.x + along, box.y, length, thick))
            along += length
        if box.width >= box.height:
            box = Box(box.x + thick, box.y, max(0.0, box.width - thick), box.height)
        else:
            box = Box(box.x, box.y + thick, box.width, max(0.0, box.height - thick))
        left -= sums
        at += row
    return boxes + [Box(box.x, box.y, 0.0, 0.0)] * (len(sizes) - len(boxes))


def _worst(row: Sequence[int], scale: float, short: float) -> float:
    """Return the largest ratio of sides in a row along the side `short`. Areas are sizes times `scale`."""
    area = sum(row) * scale
    if not area or not short:
        return float("inf")
    return max(short * short * row[0] * scale / area**2, area**2 / (short * short * max(row[-1], 1e-9) * scale))
