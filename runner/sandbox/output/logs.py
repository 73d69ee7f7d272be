"""Logs of bounded size: the output of a detached sandbox's program, its console and its processes.

A log is two files: when the newer one is full it takes the older one's place. Program output is kept as frames of the
channel (kind and bytes), so that standard output and errors come apart again. Before each stands its time, as two frames
without bytes, which older runners show as nothing: milliseconds since 1970, 24 bits in the header of each. A file that follows
another one begins with a frame without bytes and session, whose kind is its number: 1 to 255, then 1 again. So a reader that
follows notices if a file came and went between two looks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rootdisk.durable import opener
from rootdisk.errors import RootdiskError
from rootdisk.text import printable
from runner.channel.messages import HEADER, PAYLOAD_MAX, STDERR, STDOUT, frame

FILE_MAX_BYTES = 8 << 20
NUMBERS = 255
MISSED = b"runner: output is missing here: it came faster than it could be read\n"
LOST = "runner: {} bytes of output are missing here: the host's disk was full\n"


def older(path: Path) -> Path:
    """Return the file that has what stood in the log `path` before."""
    return path.with_name(f"{path.name}.old")


def has_log(path: Path) -> bool:
    """Return whether there is a log. When a file has become the older one, no other may be there yet."""
    return path.exists() or older(path).exists()


def time_frames(seconds: float) -> bytes:
    """Return the two frames that hold a time."""
    value = int(seconds * 1000)
    parts = (value >> 24 & 0xFFFFFF, value & 0xFFFFFF)
    return b"".join(HEADER.pack(0, STDOUT, part >> 16, part & 0xFFFF) for part in parts)


class Log:
    """Appends to `path`, up to `max_bytes`. Older data is in `path`.old.

    If the disk of the host is full, complete writes are dropped. A note about their size follows when there is space again.
    """

    def __init__(self, path: Path, max_bytes: int = FILE_MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._size = 0
        self._lost = 0
        self._framed = False
        with contextlib.suppress(OSError):
            self._open()

    def _open(self) -> BinaryIO:
        self._file = open(self.path, "ab", buffering=0, opener=opener)  # noqa: SIM115 - open while the sandbox runs
        self._size = os.fstat(self._file.fileno()).st_size
        return self._file

    def write(self, data: bytes, *, stamp: bytes = b"") -> None:
        """Append `stamp` and `data`, or drop all of it if the disk is full."""
        if self._lost:
            note = LOST.format(self._lost).encode()
            if not self._append(frame(STDERR, note) if self._framed else note):
                self._lost += len(data)
                return
            self._lost = 0
        if not self._append(stamp + data):
            self._lost += len(data)

    def write_frame(self, kind: int, data: bytes) -> None:
        """Append output of a program, with the time."""
        self._framed = True
        self.write(frame(kind, data), stamp=time_frames(time.time()))

    def _append(self, data: bytes) -> bool:
        """Append all of `data`, or nothing. Return whether it was appended."""
        try:
            file = self._file or self._open()
            if self._size + len(data) > self._max_bytes and self._size:
                if self._framed:
                    data = HEADER.pack(0, _number(self.path) % NUMBERS + 1, 0, 0) + data
                os.replace(self.path, older(self.path))
                self._file = None
                file.close()
                file = self._open()
            if file.write(data) == len(data):
                self._size += len(data)
                return True
            file.truncate(self._size)
        except OSError:
            pass  # the disk is full, or the file size limit is reached
        return False


class Reader:
    """Reads a log that may still be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._old = older(path)
        self._file: BinaryIO | None = None
        self._rest = b""
        self._number: int | None = None  # of the file that the last frame came from
        self._is_at_start = False  # of a file: its number comes
        self._time: float | None = None
        self._half: int | None = None  # the first part of a time
        self._open_next()

    @property
    def is_open(self) -> bool:
        """Return whether there was a file to read."""
        return self._file is not None

    def data(self) -> Iterator[bytes]:
        """Yield what was written since the last call, in pieces. It ends, even if more is written than can be read."""
        return (data for data, _ in self._pieces())

    def _pieces(self) -> Iterator[tuple[bytes, bool]]:
        """Yield what was written since the last call; with each piece, whether it is the first of a file."""
        if self._file is None:
            self._open_next()
        left = self._unread()
        while left > 0 and self._file is not None:
            is_first = self._file.tell() == 0
            if data := self._file.read(min(left, 256 << 10)):
                left -= len(data)
                yield data, is_first
                continue
            if _identity(self._file.fileno()) == _identity(self.path):
                return
            # The file has been replaced. Read once more: data may have come before that.
            if data := self._file.read():
                yield data, is_first
            if not self._open_next():
                return

    def _open_next(self) -> bool:
        """Open the file after the one that is read, or the first one. Return whether there is one.

        It is the older one if that is another, else the newer one: what is read may have lost its name already. An empty one
        too: when it has data, another may have its name.
        """
        own = _identity(self._file.fileno()) if self._file is not None else None
        while True:
            old = _identity(self._old)
            path = self.path if old in (None, own) else self._old
            try:
                file = open(path, "rb", opener=opener)  # noqa: SIM115 - open between calls
            except FileNotFoundError:
                if _identity(self._old) == old:
                    return False
                continue  # it became the older one just now
            is_same = _identity(file.fileno()) == own
            if not is_same and (path == self._old or _identity(self._old) == old):
                break
            file.close()  # it is the same one, or the files were replaced just now
            if is_same:
                return False
        if self._file is not None:
            self._file.close()
        self._file = file
        return True

    def _unread(self) -> int:
        """Return how many bytes there are to be read now."""
        if self._file is None:
            return 0
        info = os.fstat(self._file.fileno())
        found, own = max(info.st_size - self._file.tell(), 0), (info.st_dev, info.st_ino)
        for path in (self.path, self._old):
            with contextlib.suppress(FileNotFoundError):
                info = os.stat(path)
                if own == (info.st_dev, info.st_ino):
                    break  # the older ones have been read
                found += info.st_size
        return found

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Yield complete frames (kind and bytes) that were written since the last call.

        Raises:
            RootdiskError: The log is damaged.
        """
        return ((kind, data) for _, kind, data in self.timed_frames())

    def timed_frames(self) -> Iterator[tuple[float | None, int, bytes]]:
        """Yield frames like `frames`, each with its time. The time is None in a log of an older runner."""
        for data, is_first in self._pieces():
            if is_first:
                self._is_at_start, self._rest, self._half = True, b"", None
            self._rest += data
            at = 0
            while len(self._rest) - at >= HEADER.size:
                length, kind, high, low = HEADER.unpack_from(self._rest, at)
                if length > PAYLOAD_MAX:  # not written by us; waiting for its end would fill the memory
                    raise RootdiskError(
                        f"{printable(self.path.name)} is damaged", "the console is separate: runner logs --console"
                    )
                end = at + HEADER.size + length
                if end > len(self._rest):
                    break
                if self._is_at_start and self._misses(0 if length or high or low else kind):
                    yield self._time, STDERR, MISSED
                if length:
                    yield self._time, kind, self._rest[at + HEADER.size : end]
                elif high or low or self._half is not None:
                    self._take_time(high << 16 | low)
                at = end
            self._rest = self._rest[at:]

    def _misses(self, number: int) -> bool:
        """Take the number of a file that begins, 0 if it has none. Return whether there was one before it that was not read."""
        before, self._number, self._is_at_start = self._number, number, False
        return before is not None and number not in (0, before % NUMBERS + 1)

    def _take_time(self, part: int) -> None:
        if self._half is None:
            self._half = part
        else:
            self._time, self._half = (self._half << 24 | part) / 1000, None


def _identity(place: Path | int) -> tuple[int, int] | None:
    """Return what tells a file from others, None if there is none."""
    try:
        info = os.stat(place)
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _number(path: Path) -> int:
    """Return a log file's number, 0 if it has none: it was the first, or an older runner's."""
    with open(path, "rb", opener=opener) as file:
        head = file.read(HEADER.size)
    length, kind, high, low = HEADER.unpack(head) if len(head) == HEADER.size else (1, 0, 0, 0)
    return 0 if length or high or low else int(kind)


class Lines:
    """Complete lines of a log that may still be written. One of more than `longest` bytes was not written by us: it is left out."""

    def __init__(self, path: Path, longest: int) -> None:
        self._path, self._longest = path, longest
        self._reader = Reader(path)
        self._rest = b""

    def fresh(self) -> Iterator[bytes]:
        """Yield what was written since the last call."""
        if not self._reader.is_open:
            self._reader = Reader(self._path)  # there was none yet
        for data in self._reader.data():
            *lines, rest = (self._rest + data).split(b"\n")
            yield from (line for line in lines if len(line) <= self._longest)
            self._rest = rest[: self._longest + 1]
