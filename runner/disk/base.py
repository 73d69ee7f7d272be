"""The bytes of a base disk, from its file or, if it is incomplete, from its server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from rootdisk.durable import open_file


class Base(Protocol):
    """A base disk of `size` bytes."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer at the end of the disk."""

    def close(self) -> None:
        """Close what is open."""


class BaseFile:
    """A complete base disk."""

    def __init__(self, path: Path) -> None:
        """Open the file. OSError if it cannot be opened."""
        self._fd = open_file(path)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer at the end of the disk."""
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
