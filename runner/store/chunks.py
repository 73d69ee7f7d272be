"""Fetch chunks of a disk into a sparse file, over several connections. Each chunk is verified before it is written.

A thread for each connection reads frames, decompresses them, compares the sha256 and writes the chunk. Socket buffers of the
kernel fill meanwhile. So a thread holds one frame and one chunk in memory, for any size of disk.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import zstandard

from rootdisk.artifact.format import Chunk
from rootdisk.artifact.zstd_frames import unpack
from rootdisk.cli.progress import Progress
from rootdisk.durable import write_at
from rootdisk.errors import DigestMismatch
from rootdisk.oci.repository import Joined
from rootdisk.system.memory import keep_buffers
from rootdisk.system.threads import running

CONNECTIONS = 4
GAP_BYTES = 512 << 10  # a gap up to this size is fetched and discarded: cheaper than another request
PART_BYTES = 8 << 20  # long runs are split into parts of this size, so that all connections have work
SYNC_BYTES = 16 << 20  # sync while more arrives: a disk is often as slow as the network, and little is left at the end
LOOK_S = 0.02


class Part(NamedTuple):
    """A byte range of the blob for one request: from the first of `chunks` to the end of the last."""

    chunks: tuple[Chunk, ...]

    @property
    def start(self) -> int:
        """The first byte in the blob."""
        return self.chunks[0].blob_offset

    @property
    def end(self) -> int:
        """The end in the blob, exclusive."""
        return self.chunks[-1].blob_end


def plan(wanted: Iterable[Chunk], gap_bytes: int = GAP_BYTES, ends: Sequence[int] = ()) -> Iterator[Part]:
    """Yield the parts to request, in the order of the blob. Chunks with gaps up to `gap_bytes` between them share a part.

    No part has chunks on both sides of one of `ends`, where another blob begins: that would be a second request, which waits until
    the first is done.
    """
    chunks: list[Chunk] = []
    for chunk in wanted:
        if chunks and (
            chunk.blob_offset - chunks[-1].blob_end > gap_bytes
            or chunk.blob_end - chunks[0].blob_offset > PART_BYTES
            or bisect_right(ends, chunk.blob_offset) != bisect_right(ends, chunks[0].blob_offset)
        ):
            yield Part(tuple(chunks))
            chunks = []
        chunks.append(chunk)
    if chunks:
        yield Part(tuple(chunks))


def transfer(blob: Joined, wanted: Sequence[Chunk], fd: int, progress: Progress | None = None) -> int:
    """Fetch the chunks and write them to `fd`. Return how many bytes were requested.

    All threads have ended when this returns or raises.

    Raises:
        DigestMismatch: A chunk is wrong, also after a second request.
        RegistryError: The registry failed.
    """
    work = _Transfer(blob, deque(plan(wanted, ends=blob.ends)), fd)
    total = sum(chunk.blob_length for chunk in wanted)
    threads = min(CONNECTIONS, len(work.parts))
    if not threads:
        return 0
    keep_buffers()
    with running([partial(work.run, first=not n) for n in range(threads)]) as connections:
        try:
            synced = 0
            while not connections.wait(LOOK_S):
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
    """State shared by the threads."""

    def __init__(self, blob: Joined, parts: deque[Part], fd: int) -> None:
        self.parts = parts
        self.asked = self.done = 0  # bytes of the blob
        self.written = 0  # bytes of the disk
        self._blob, self._fd = blob, fd
        self._lock = threading.Lock()
        self._stopped = False
        self._answered = threading.Event()

    def stop(self) -> None:
        """Make all threads end soon."""
        self._stopped = True
        self._blob.repository.interrupt()
        self._answered.set()

    def run(self, first: bool) -> None:
        """Fetch parts until none are left.

        If it is not known whether the server serves ranges, the `first` thread starts alone: its response tells.
        """
        decompressor = zstandard.ZstdDecompressor()
        try:
            if not first and not self._blob.repository.serves_ranges:
                self._answered.wait()
            while part := self._take():
                for chunk, raw in receive(self._blob, part, decompressor, self._count):
                    self._answered.set()
                    write_at(self._fd, raw, chunk.offset)
                    with self._lock:
                        self.done += chunk.blob_length
                        self.written += chunk.length
                    if self._stopped:
                        return
        finally:
            self._answered.set()

    def _count(self, requested_bytes: int) -> None:
        with self._lock:
            self.asked += requested_bytes

    def _take(self) -> Part | None:
        with self._lock:
            if self._stopped or not self.parts:
                return None
            part = self.parts.popleft()
            if self._blob.repository.serves_ranges is False:
                # Every response is the complete blob, so fetch all remaining parts at once.
                part = Part((*part.chunks, *(chunk for other in self.parts for chunk in other.chunks)))
                self.parts.clear()
            self.asked += part.end - part.start
            return part


def receive(
    blob: Joined, part: Part, decompressor: zstandard.ZstdDecompressor, count: Callable[[int], None]
) -> Iterator[tuple[Chunk, bytes]]:
    """Request a part and yield its chunks with their raw bytes, each verified, as they arrive.

    A chunk that is wrong is requested once more, because another server may answer. `count` is told the bytes of such requests.

    Raises:
        DigestMismatch: A chunk is wrong both times.
        RegistryError: The registry failed.
    """
    for chunk, frame in _frames(blob.read(part.start, part.end), part):
        is_other = True
        while True:
            try:
                raw = unpack(chunk, frame, decompressor)
                break
            except DigestMismatch:
                if not (blob.blame(chunk.blob_offset, chunk.blob_end) or is_other):
                    raise
            is_other = False
            count(chunk.blob_length)
            frame = b"".join(blob.read(chunk.blob_offset, chunk.blob_end))
        yield chunk, raw


def _frames(pieces: Iterator[bytes], part: Part) -> Iterator[tuple[Chunk, bytes]]:
    """Split the bytes of a part into the frames of its chunks."""
    buffer = bytearray()
    at = part.start  # position of the buffer in the blob
    for chunk in part.chunks:
        while at + len(buffer) < chunk.blob_end:
            piece = next(pieces, None)
            if piece is None:
                raise DigestMismatch("the disk blob ends early", "fetch it again")
            buffer += piece
            if at + len(buffer) <= chunk.blob_offset:
                at += len(buffer)
                buffer.clear()
        frame = bytes(memoryview(buffer)[chunk.blob_offset - at : chunk.blob_end - at])
        del buffer[: chunk.blob_end - at]
        at = chunk.blob_end
        yield chunk, frame
