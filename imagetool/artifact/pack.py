"""Plan in, compressed disk out, in one pass: each chunk is gathered, written, hashed and compressed while it is hot.

    pack(plan, sources, out) -> Packed      out: the raw disk (if wanted), the zstd file, its chunk index, its keys

Chunks are independent, so threads share the work (sha256, zstd and reading all release the interpreter); frames are
written in disk order, so the bytes do not depend on the number of threads. Chunks that an earlier disk of ours has
(imagetool/artifact/reuse.py) are copied from there, verified, and neither inflated nor compressed again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from imagetool.artifact.frames import compressor, seek_table, zero_frame
from imagetool.artifact.reuse import KEY_BYTES, Earlier
from imagetool.ext4 import DiskChunk, Plan
from imagetool.tree.model import Source
from runner.artifact import ZERO_CHUNK_MAX_BYTES, Chunk, ChunkIndex
from runner.oci import Digest


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written: the index, the zstd file's size and digest, and each chunk's key (zero bytes where it has none)."""

    index: ChunkIndex
    blob_size: int
    blob_digest: Digest
    keys: bytes
    new_chunks: int
    reused_chunks: int


@dataclass(frozen=True, slots=True)
class _Frame:
    raw_length: int
    sha256: bytes
    data: bytes
    zero: bool
    reused: bool


def pack(
    plan: Plan,
    sources: Sequence[Source],
    blob: BinaryIO,
    disk: int | None = None,
    *,
    earlier: Earlier | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the disk of `plan` as frames to `blob`, and raw to descriptor `disk` (empty, sparse after) where given.

    `progress` is told (bytes done, bytes in all) of data, holes not counted. Errors of reading the sources pass through.
    """
    if disk is not None:
        os.ftruncate(disk, plan.size)
    workers = threads or max(2, len(os.sched_getaffinity(0)))
    total = sum(chunk.length for chunk in plan.chunks)
    out = _Blob(blob)
    local = threading.local()

    def frame(chunk: DiskChunk) -> _Frame:
        if earlier is not None and chunk.key is not None:
            found = earlier.find(chunk.key, chunk.length)
            if found is not None:
                if disk is not None:
                    _write_all(disk, found.raw, chunk.offset)
                return _Frame(chunk.length, found.sha256, found.frame, False, True)
        raw = chunk.render(sources)
        if raw == bytes(len(raw)):
            return _Frame(chunk.length, bytes(32), b"", True, False)
        if disk is not None:
            _write_all(disk, raw, chunk.offset)
        if not hasattr(local, "compressor"):
            local.compressor = compressor()
        return _Frame(chunk.length, hashlib.sha256(raw).digest(), local.compressor.compress(raw), False, False)

    with ThreadPoolExecutor(workers, "pack") as pool:
        done = 0
        for chunk, made in _in_order(pool, frame, plan.chunks, window=4 * workers):
            if made.zero:
                continue  # becomes part of the hole that is written with the next chunk
            out.hole(chunk.offset)
            out.chunk(chunk.offset, made, chunk.key or bytes(KEY_BYTES))
            done += chunk.length
            if progress is not None:
                progress(done, total)
    out.hole(plan.size)
    return out.finish(plan.size)


class _Blob:
    """The zstd file while it is written: frames in disk order, then the seek table."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.offset = 0  # in the file
        self.end = 0  # on the disk
        self.chunks: list[Chunk] = []
        self.keys: list[bytes] = []
        self.reused = 0
        self.new = 0

    def hole(self, end: int) -> None:
        """Zeros up to `end`."""
        while self.end < end:
            length = min(end - self.end, ZERO_CHUNK_MAX_BYTES)
            self._add(zero_frame(length), length, bytes(32), True, bytes(KEY_BYTES))

    def chunk(self, offset: int, frame: _Frame, key: bytes) -> None:
        assert offset == self.end
        self.reused += frame.reused
        self.new += not frame.reused
        self._add(frame.data, frame.raw_length, frame.sha256, False, key)

    def _add(self, data: bytes, length: int, sha256: bytes, zero: bool, key: bytes) -> None:
        self._write(data)
        self.chunks.append(Chunk(self.end, length, self.offset - len(data), len(data), sha256, zero))
        self.keys.append(key)
        self.end += length

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.offset += len(data)

    def finish(self, disk_size: int) -> Packed:
        self._write(seek_table((chunk.blob_length, chunk.length) for chunk in self.chunks))
        self.file.flush()
        index = ChunkIndex(disk_size, tuple(self.chunks))
        digest = Digest("sha256", self.digest.hexdigest())
        return Packed(index, self.offset, digest, b"".join(self.keys), self.new, self.reused)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[DiskChunk], _Frame], chunks: Sequence[DiskChunk], window: int
) -> Iterator[tuple[DiskChunk, _Frame]]:
    """`work` of every chunk, in the chunks' order, at most `window` of them in memory."""
    waiting: deque[tuple[DiskChunk, Future[_Frame]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(work, chunk)))
            if len(waiting) >= window:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _write_all(fd: int, data: bytes | bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
