"""Chunks of a disk's blobs into a sparse file: several connections at once, each chunk verified before it is written.

Each connection's thread reads frames, decompresses, compares sha256 and writes; the kernel's socket buffers fill
meanwhile. So a thread holds one frame and one chunk, whatever the disk's size.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import NamedTuple

import zstandard

from rootdisk.artifact.format import Chunk
from rootdisk.artifact.zstd_frames import unpack
from rootdisk.cli.progress import Progress
from rootdisk.durable import write_at
from rootdisk.errors import DigestMismatch
from rootdisk.oci.repository import Joined
from rootdisk.system.threads import pool_of

CONNECTIONS = 4
GAP_BYTES = 512 << 10  # a gap up to this is fetched and thrown away: cheaper than another request
PART_BYTES = 8 << 20  # long runs are cut into parts of this, so that the connections share them
SYNC_BYTES = 32 << 20  # written out while more arrives: a disk is often as slow as the network
LOOK_S = 0.1


class Part(NamedTuple):
    """A run of the blob, asked for at once: from the first of `chunks` to the end of the last."""

    chunks: tuple[Chunk, ...]

    @property
    def start(self) -> int:
        return self.chunks[0].blob_offset

    @property
    def end(self) -> int:
        return self.chunks[-1].blob_end


def plan(wanted: Iterable[Chunk]) -> Iterator[Part]:
    """The parts to ask for, in the blob's order. Of a blob that is wanted nearly whole, they are one run without a gap."""
    chunks: list[Chunk] = []
    for chunk in wanted:
        if chunks and (
            chunk.blob_offset - chunks[-1].blob_end > GAP_BYTES or chunk.blob_end - chunks[0].blob_offset > PART_BYTES
        ):
            yield Part(tuple(chunks))
            chunks = []
        chunks.append(chunk)
    if chunks:
        yield Part(tuple(chunks))


def transfer(blob: Joined, wanted: Sequence[Chunk], fd: int, progress: Progress | None = None) -> int:
    """Fetch the chunks and write them to `fd`; bytes asked of the blobs. When it returns or raises, nothing writes any more."""
    work = _Transfer(blob, deque(plan(wanted)), fd)
    total = sum(chunk.blob_length for chunk in wanted)
    threads = min(CONNECTIONS, len(work.parts))
    if not threads:
        return 0
    with pool_of(threads) as pool:
        try:
            running: set[Future[None]] = {pool.submit(work.run, first=not n) for n in range(threads)}
            synced = 0
            while running:
                ended, running = wait(running, LOOK_S, FIRST_COMPLETED)
                for future in ended:
                    future.result()
                if progress is not None:
                    progress(work.done, total)
                if work.written - synced >= SYNC_BYTES:
                    synced = work.written
                    os.fdatasync(fd)
        except BaseException:
            work.stop()
            raise
    return work.asked


class _Transfer:
    """What the threads share."""

    def __init__(self, blob: Joined, parts: deque[Part], fd: int) -> None:
        self.parts = parts
        self.asked = self.done = 0  # bytes of the blob
        self.written = 0  # bytes of the disk
        self._blob, self._fd = blob, fd
        self._lock = threading.Lock()
        self._stopped = False
        self._answered = threading.Event()

    def stop(self) -> None:
        self._stopped = True
        self._blob.repository.interrupt()
        self._answered.set()

    def run(self, first: bool) -> None:
        """Fetch parts until there are none. The first request goes alone: its answer says whether the server knows ranges."""
        decompressor = zstandard.ZstdDecompressor()
        try:
            if not first:
                self._answered.wait()
            while part := self._take():
                for chunk, frame in _frames(self._blob.read(part.start, part.end), part):
                    self._answered.set()
                    write_at(self._fd, self._unpacked(chunk, frame, decompressor), chunk.offset)
                    with self._lock:
                        self.done += chunk.blob_length
                        self.written += chunk.length
                    if self._stopped:
                        return
        finally:
            self._answered.set()

    def _unpacked(self, chunk: Chunk, frame: bytes, decompressor: zstandard.ZstdDecompressor) -> bytes:
        """The chunk's raw bytes. Wrong ones are asked for once more: the next answer may come another way."""
        try:
            return unpack(chunk, frame, decompressor)
        except DigestMismatch:
            with self._lock:
                self.asked += chunk.blob_length
            return unpack(chunk, b"".join(self._blob.read(chunk.blob_offset, chunk.blob_end)), decompressor)

    def _take(self) -> Part | None:
        with self._lock:
            if self._stopped or not self.parts:
                return None
            part = self.parts.popleft()
            if self._blob.repository.ranges_ignored:
                # Every answer is the whole blob, so the rest comes in one.
                part = Part((*part.chunks, *(chunk for other in self.parts for chunk in other.chunks)))
                self.parts.clear()
            self.asked += part.end - part.start
            return part


def _frames(pieces: Iterator[bytes], part: Part) -> Iterator[tuple[Chunk, bytes]]:
    """Cut the bytes of a part into its chunks' frames."""
    buffer = bytearray()
    at = part.start  # of the buffer's first byte in the blob
    for chunk in part.chunks:
        while at + len(buffer) < chunk.blob_end:
            piece = next(pieces, None)
            if piece is None:
                raise DigestMismatch("the disk blob ends early", "fetch again")
            buffer += piece
            if at + len(buffer) <= chunk.blob_offset:
                at += len(buffer)
                buffer.clear()
        frame = bytes(memoryview(buffer)[chunk.blob_offset - at : chunk.blob_end - at])
        del buffer[: chunk.blob_end - at]
        at = chunk.blob_end
        yield chunk, frame
