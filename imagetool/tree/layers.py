"""Layers' inflated tars as Sources: where the ext4 writer reads file data from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from rootdisk.errors import DigestMismatch


class FileSource(NamedTuple):
    """The file behind a descriptor as a Source; the descriptor stays the caller's. `name` is for messages."""

    fd: int
    name: str

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """See `Source`; DigestMismatch where the file has become shorter than it was verified."""
        left = sum(map(len, buffers))
        while left:
            count = os.preadv(self.fd, buffers, offset)
            if not count:
                raise DigestMismatch(
                    f"layer {self.name} ends at byte {offset}", "remove it from the cache and try again"
                )
            left -= count
            offset += count
            if left:
                buffers = _behind(buffers, count)


def _behind(buffers: Sequence[memoryview], count: int) -> Sequence[memoryview]:
    """Return what `buffers` have behind their first `count` bytes."""
    number = 0
    while count >= len(buffers[number]):
        count -= len(buffers[number])
        number += 1
    return [buffers[number][count:], *buffers[number + 1 :]]
