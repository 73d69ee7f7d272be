"""The bytes of blobs, made again from what the store keeps: disks, the dm-verity tree and the vmlinux are decompressed there.

The store keeps the chunk index, so each frame's place and length is known. A frame is compressed again when it is asked for; those
made last are kept in memory, because neighbours fetch the same disk at the same time. Another zstd than the writer's may give
other bytes: so each blob is made and hashed once by each process, and one that is not the same is not served. Nothing is kept on
disk for that.
"""

from __future__ import annotations

import hashlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from rootdisk.artifact.format import Chunk
from rootdisk.artifact.zstd_frames import compressor, seek_table, zero_frame
from rootdisk.durable import open_file
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Descriptor
from runner.store.store import read_index

PIECE_BYTES = 1 << 20
FRAMES_MAX_BYTES = 64 << 20  # of made frames that are kept in memory


class Blob(Protocol):
    """A blob that can be read in ranges."""

    @property
    def descriptor(self) -> Descriptor:
        """The type, digest and size."""

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [start, end), in pieces. OSError or ValueError: the store cannot give them."""


class FileBlob(NamedTuple):
    """A blob that is a file of the store."""

    path: Path
    descriptor: Descriptor

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [start, end), in pieces."""
        fd = open_file(self.path)
        try:
            while start < end:
                piece = os.pread(fd, min(PIECE_BYTES, end - start), start)
                if not piece:
                    raise ValueError(f"{self.path.name} is too short")
                yield piece
                start += len(piece)
        finally:
            os.close(fd)


class CompressedBlob(NamedTuple):
    """A blob whose content the store keeps decompressed."""

    path: Path
    descriptor: Descriptor
    is_streamed: bool  # the dm-verity tree is compressed while it is made, the vmlinux at once: that gives other bytes

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [start, end), in pieces."""
        data = memoryview(_compressed(self.path, self.is_streamed))[start:end]
        for at in range(0, len(data), PIECE_BYTES):
            yield bytes(data[at : at + PIECE_BYTES])


_compressing: dict[Path, threading.Lock] = {}  # by file


def _compressed(path: Path, is_streamed: bool) -> bytes:
    """Return the compressed file. Those who ask for it at the same time wait for one of them: it takes seconds and memory."""
    with _compressing.setdefault(path, threading.Lock()):
        return _compressed_once(path, is_streamed)


@lru_cache(maxsize=4)
def _compressed_once(path: Path, is_streamed: bool) -> bytes:
    with open(open_file(path), "rb") as file:
        if not is_streamed:
            return compressor().compress(file.read())
        frame = compressor().compressobj(size=os.fstat(file.fileno()).st_size)
        pieces = [frame.compress(piece) for piece in iter(lambda: file.read(PIECE_BYTES), b"")]
        return b"".join([*pieces, frame.flush()])


class DiskBlob(NamedTuple):
    """A part of the disk's frames; the last has the seek table too."""

    disk: Path
    descriptor: Descriptor
    start: int  # in the zstd file of all parts
    is_last: bool

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [start, end), in pieces of a frame at most."""
        chunks = _chunks(self.disk)
        at, stop = self.start + start, self.start + end
        number = bisect_right([chunk.blob_offset for chunk in chunks], at) - 1
        fd = open_file(self.disk)
        try:
            while at < stop and number < len(chunks) and at < chunks[-1].blob_end:
                chunk = chunks[number]
                frame = _frames.get((self.disk, number)) or _frames.keep((self.disk, number), _frame(fd, chunk))
                piece = frame[at - chunk.blob_offset : stop - chunk.blob_offset]
                yield piece
                at, number = at + len(piece), number + 1
        finally:
            os.close(fd)
        if at < stop and self.is_last:
            table = seek_table((chunk.blob_length, chunk.length) for chunk in chunks)
            yield table[at - chunks[-1].blob_end : stop - chunks[-1].blob_end]


def _frame(fd: int, chunk: Chunk) -> bytes:
    """Compress a chunk of the disk `fd` again; ValueError if that gives another length than the writer's."""
    frame = zero_frame(chunk.length) if chunk.zero else compressor().compress(os.pread(fd, chunk.length, chunk.offset))
    if len(frame) != chunk.blob_length:
        raise ValueError("this zstd does not give the frames of the writer")
    return frame


class Frames:
    """The frames that were made last, by disk and number; `max_bytes` of them. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Path, int], bytes] = OrderedDict()
        self._size = 0

    def get(self, key: tuple[Path, int]) -> bytes | None:
        """Return a frame that is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: tuple[Path, int], frame: bytes) -> bytes:
        """Keep a frame, and drop those that were not asked for the longest; return the frame."""
        with self._lock:
            self._size += len(frame) - len(self._kept.pop(key, b""))
            self._kept[key] = frame
            while self._size > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._size -= len(oldest)
        return frame


_frames = Frames(FRAMES_MAX_BYTES)


@lru_cache(maxsize=4)
def _chunks(disk: Path) -> tuple[Chunk, ...]:
    """Return the chunks of a disk, which never change."""
    return read_index(disk).chunks


def is_right(blob: Blob) -> bool:
    """Make the whole of a blob and compare its digest. FileNotFoundError if it is not there: it may still be fetched."""
    digest, size = hashlib.new(blob.descriptor.digest.algorithm), 0
    try:
        for piece in blob.read(0, blob.descriptor.size):
            digest.update(piece)
            size += len(piece)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RootdiskError):
        return False
    return size == blob.descriptor.size and digest.hexdigest() == blob.descriptor.digest.hex
