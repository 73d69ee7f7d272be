"""Find where two files of one size differ, and read only what may: chunks that both have are equal."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from imagetool.ext4.reader import Node, Reader

STEP_BYTES = 1 << 20
SHOWN_BYTES = 8


class Span(NamedTuple):
    """Bytes [start, end) of a file, which are those of a chunk from byte `offset` on."""

    start: int
    end: int
    sha256: bytes
    offset: int


class File(NamedTuple):
    """A file on a disk, and where its bytes are; what lies between its spans is a hole."""

    reader: Reader
    node: Node
    spans: Sequence[Span]  # ascending

    def at(self, position: int) -> tuple[tuple[bytes, int], int]:
        """Return the sha256 of the chunk at `position` and the offset in it, and the position where it ends."""
        number = bisect_right(self.spans, position, key=lambda span: span.start)
        if number and position < self.spans[number - 1].end:
            span = self.spans[number - 1]
            return (span.sha256, span.offset + position - span.start), span.end
        return (b"", 0), self.spans[number].start if number < len(self.spans) else self.node.size


def shares(old: File, new: File) -> bool:
    """Return whether some chunk has bytes of both files."""
    return not {span.sha256 for span in old.spans}.isdisjoint(span.sha256 for span in new.spans)


def first_difference(old: File, new: File) -> tuple[int, bytes, bytes] | None:
    """Return the first position where the files differ, and some bytes of each from there; None if they are equal."""
    position, size = 0, min(old.node.size, new.node.size)
    while position < size:
        (what, end), (other, other_end) = old.at(position), new.at(position)
        stop = min(end, other_end, size)
        if what != other:
            stop = min(stop, position + STEP_BYTES)
            first, second = (file.reader.read_at(file.node, position, stop - position) for file in (old, new))
            if first != second:
                at = next(number for number, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
                return position + at, first[at : at + SHOWN_BYTES], second[at : at + SHOWN_BYTES]
        position = stop
    return None
