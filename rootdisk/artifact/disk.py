"""A disk's bytes, from a raw file or from the frames of an artifact in any place."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from rootdisk.artifact.format import Chunk, ChunkIndex
from rootdisk.artifact.zstd_frames import unpack
from rootdisk.errors import BadInput

CACHED_CHUNKS = 64


class Device(Protocol):
    """A disk of `size` bytes."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on. BadInput: past the end."""

    def close(self) -> None:
        """Close what is open."""


class Blobs(Protocol):
    """A disk's blobs, read as one."""

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield exactly the bytes [start, end), in pieces, not verified."""

    def close(self) -> None:
        """Close what is open."""


class RawDisk:
    """A raw disk file."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise BadInput(f"cannot read {path}: {err.strerror}") from err
        self._path = path
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on. BadInput: past the end."""
        data = os.pread(self._fd, length, offset) if offset + length <= self.size else b""
        if len(data) != length:
            raise BadInput(f"{self._path}: the disk ends at byte {self.size}, before {offset + length}")
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class FramedDisk:
    """The disk in an artifact's blobs: only the frames that are asked for are fetched, each verified."""

    def __init__(self, blobs: Blobs, index: ChunkIndex) -> None:
        self._blobs, self._index = blobs, index
        self._starts = [chunk.offset for chunk in index.chunks]
        self._decompressor = zstandard.ZstdDecompressor()
        self._raw: OrderedDict[int, bytes] = OrderedDict()
        self.size = index.disk_size
        self._like: tuple[FramedDisk, dict[bytes, int]] | None = None

    def share(self, other: FramedDisk) -> None:
        """Take chunks that `other` has, by their sha256, from there: each is fetched once."""
        self._like = other, {chunk.sha256: n for n, chunk in enumerate(other._index.chunks) if not chunk.zero}

    def content(self, offset: int, length: int) -> Iterator[tuple[bytes, int, int]]:
        """Describe the bytes at `offset` without reading them: the sha256 of each chunk, the offset in it, and the length."""
        while length > 0:
            chunk = self._index.chunks[bisect_right(self._starts, offset) - 1]
            count = min(length, chunk.end - offset)
            yield chunk.sha256, 0 if chunk.zero else offset - chunk.offset, count
            offset, length = offset + count, length - count

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on.

        Raises:
            BadInput: past the end.
            DigestMismatch: a frame is damaged.
            RegistryError: a frame cannot be fetched.
        """
        if offset + length > self.size:
            raise BadInput(f"the disk ends at byte {self.size}, before {offset + length}")
        out = bytearray()
        while len(out) < length:
            at = offset + len(out)
            number = bisect_right(self._starts, at) - 1
            chunk = self._index.chunks[number]
            count = min(length - len(out), chunk.end - at)
            out += bytes(count) if chunk.zero else self._chunk(number)[at - chunk.offset : at - chunk.offset + count]
        return bytes(out)

    def _chunk(self, number: int) -> bytes:
        cached = self._raw.get(number)
        if cached is not None:
            self._raw.move_to_end(number)
            return cached
        chunk = self._index.chunks[number]
        raw = self._from_other(chunk)
        if raw is None:
            frame = b"".join(self._blobs.read(chunk.blob_offset, chunk.blob_offset + chunk.blob_length))
            raw = unpack(chunk, frame, self._decompressor)
        self._raw[number] = raw
        if len(self._raw) > CACHED_CHUNKS:
            self._raw.popitem(last=False)
        return raw

    def _from_other(self, chunk: Chunk) -> bytes | None:
        if self._like is None:
            return None
        other, numbers = self._like
        number = numbers.get(chunk.sha256)
        if number is None or other._index.chunks[number].length != chunk.length:
            return None
        return other._chunk(number)

    def close(self) -> None:
        """Close the blobs."""
        self._blobs.close()
