"""A disk that is planned and not written: only the chunks that are read are rendered."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence

from imagetool.ext4.plan import Plan
from imagetool.tree.model import Source
from rootdisk.errors import BadInput

_CACHED_CHUNKS = 16


class PlannedDisk:
    """The disk of a plan, as a device for the reader. The sources stay open while it is read."""

    def __init__(self, plan: Plan, sources: Sequence[Source]) -> None:
        self._chunks, self._sources = plan.chunks, sources
        self._starts = [chunk.offset for chunk in plan.chunks]
        self._raw: OrderedDict[int, bytes | bytearray] = OrderedDict()
        self.size = plan.size

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on. BadInput: past the end."""
        if offset + length > self.size:
            raise BadInput(f"the disk ends at byte {self.size}, before {offset + length}")
        out = bytearray(length)
        number = max(0, bisect_right(self._starts, offset) - 1)
        while number < len(self._chunks) and self._starts[number] < offset + length:
            start = self._starts[number]
            low, high = max(offset, start), min(offset + length, start + self._chunks[number].length)
            if low < high:
                out[low - offset : high - offset] = self._chunk(number)[low - start : high - start]
            number += 1
        return bytes(out)

    def _chunk(self, number: int) -> bytes | bytearray:
        if number in self._raw:
            self._raw.move_to_end(number)
        else:
            self._raw[number] = self._chunks[number].render(self._sources)
            if len(self._raw) > _CACHED_CHUNKS:
                self._raw.popitem(last=False)
        return self._raw[number]

    def close(self) -> None:
        """Release nothing: the sources belong to others."""
