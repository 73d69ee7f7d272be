"""What a detached sandbox's program has written, and its console: logs of bounded size.

A log is two files: when the newer one is full it takes the older one's place. Program output is kept as frames of the
channel (kind and bytes), so that standard output and errors come apart again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runner.files import opener
from runner.frames import HEADER, frame

FILE_MAX_BYTES = 8 << 20


class Log:
    """Appends to `path`, which never grows past FILE_MAX_BYTES and a write; what was there before is in `path`.old."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        self._file = open(self._path, "ab", buffering=0, opener=opener)  # noqa: SIM115 - open as long as the sandbox runs
        self._size = self._file.tell()

    def write(self, data: bytes) -> None:
        if self._size + len(data) > FILE_MAX_BYTES and self._size:
            self._file.close()
            os.replace(self._path, self._path.with_name(f"{self._path.name}.old"))
            self._open()
        self._file.write(data)
        self._size += len(data)

    def write_frame(self, kind: int, data: bytes) -> None:
        self.write(frame(kind, data))


class Reader:
    """Reads a log while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = [file for file in (path.with_name(f"{path.name}.old"), path) if file.exists()]
        self._file: BinaryIO | None = None
        self._rest = b""

    def data(self) -> Iterator[bytes]:
        """What has been written since the last call, in pieces."""
        while True:
            if self._file is None:
                if not self._files:
                    return
                self._file = open(self._files.pop(0), "rb", opener=opener)  # noqa: SIM115 - as long as it is read
            while data := self._file.read(256 << 10):
                yield data
            if not self._files:
                try:
                    if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                        return
                except FileNotFoundError:
                    return
                # It is the older one by now. Once more, for what came between.
                yield self._file.read()
                self._files = [self._path]
            self._file.close()
            self._file = None

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """As `data`, kind and bytes of whole frames."""
        for data in self.data():
            self._rest += data
            at = 0
            while len(self._rest) - at >= HEADER.size:
                length, kind, _, _ = HEADER.unpack_from(self._rest, at)
                end = at + HEADER.size + length
                if end > len(self._rest):
                    break
                yield kind, self._rest[at + HEADER.size : end]
                at = end
            self._rest = self._rest[at:]
