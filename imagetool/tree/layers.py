"""Layers' inflated tars as Sources: where the ext4 writer reads file data from."""

from __future__ import annotations

import os
from typing import NamedTuple

from rootdisk.errors import DigestMismatch


class FileSource(NamedTuple):
    """The file behind a descriptor as a Source; the descriptor stays the caller's. `name` is for messages."""

    fd: int
    name: str

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill all of `buffer` from `offset`; DigestMismatch where the file has become shorter than it was verified."""
        while len(buffer):
            count = os.preadv(self.fd, [buffer], offset)
            if not count:
                raise DigestMismatch(
                    f"layer {self.name} ends at byte {offset}", "remove it from the cache and try again"
                )
            buffer = buffer[count:]
            offset += count
