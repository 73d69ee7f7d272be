"""Tars to scan: one in a file, or one that is still being inflated, so that each piece is looked at once, while it is hot.

TarFile(fd, size)
TarStream(pieces, fd, large)        writes the tar to `fd`, except the large files that `large` takes
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

Take = Callable[[int, memoryview], None]  # receives where bytes are in the tar, and the bytes


class Tar(Protocol):
    """A tar for a scanner, which goes through it from the start to the end and never back."""

    def read(self, at: int, length: int) -> bytes:
        """Return up to `length` bytes from byte `at` on, fewer only at the end. Nothing before `at` is read after that."""

    def reach(self, at: int, end: int, *, plain: bool = False) -> int:
        """Return `end`, or how many bytes the tar has if it ends before. `plain`: from `at` to `end` is all data of a file."""


class LargeFiles(Protocol):
    """A taker of the data of large files."""

    def wants(self, size: int) -> bool:
        """Return whether a file of `size` bytes is one."""

    def begin(self, start: int, size: int) -> Take:
        """Return what takes the `size` bytes of the file at byte `start` of the tar, in order."""


class TarFile(NamedTuple):
    """A tar of `size` bytes in the file `fd`."""

    fd: int
    size: int

    def read(self, at: int, length: int) -> bytes:
        """See `Tar`."""
        return os.pread(self.fd, max(0, min(length, self.size - at)), at)

    def reach(self, at: int, end: int, *, plain: bool = False) -> int:
        """See `Tar`."""
        return min(end, self.size)


class TarStream:
    """A tar that comes in `pieces`. Errors of the iterator pass through."""

    def __init__(self, pieces: Iterator[bytes], fd: int, large: LargeFiles | None = None) -> None:
        self._pieces, self._fd, self._large = pieces, fd, large
        self._waiting: deque[memoryview] = deque()  # what has come and is not taken: from byte _start to byte _end
        self._start = self._end = 0

    def read(self, at: int, length: int) -> bytes:
        """See `Tar`."""
        assert at >= self._start
        self._take(at, self._write)
        while self._end < at + length and self._come():
            pass
        parts, room = [], length
        for piece in self._waiting:
            if not room:
                break
            parts.append(piece[:room])
            room -= len(parts[-1])
        return b"".join(parts)

    def reach(self, at: int, end: int, *, plain: bool = False) -> int:
        """See `Tar`."""
        if plain and self._large is not None and self._large.wants(end - at):
            self._take(at, self._write)
            self._take(end, self._large.begin(at, end - at))
        elif end > self._end:
            self._take(end, self._write)
        return min(end, self._end)

    def finish(self) -> None:
        """Write the rest of what was read, and read on to the end. The remaining bytes contain no entry, so they are not written."""
        self._take(self._end, self._write)
        for _ in self._pieces:
            pass

    def _come(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._waiting.append(memoryview(piece))
        self._end += len(piece)
        return True

    def _take(self, end: int, take: Take) -> None:
        """Give everything up to byte `end` to `take`."""
        while self._start < end and (self._waiting or self._come()):
            piece = self._waiting.popleft()
            part, rest = piece[: end - self._start], piece[end - self._start :]
            take(self._start, part)
            self._start += len(part)
            if rest:
                self._waiting.appendleft(rest)

    def _write(self, at: int, part: memoryview) -> None:
        while part:
            count = os.pwrite(self._fd, part, at)
            part, at = part[count:], at + count
