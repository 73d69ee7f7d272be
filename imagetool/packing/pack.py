"""Plan in, compressed disk out, in one pass: each chunk is gathered, hashed and compressed while it is hot.

    pack(plan, sources, folder, crew) -> Packed      folder: the blobs, their chunk index, and what later disks reuse them by

Chunks are independent, so a crew of threads shares the work (sha256, zstd and reading all release the interpreter);
frames are written in disk order, so the bytes do not depend on the number of threads. What an earlier disk of ours has
(imagetool/packing/reuse.py) is neither inflated nor compressed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from imagetool.ext4.chunk import DiskChunk, is_zero
from imagetool.ext4.plan import Plan
from imagetool.packing import known_files
from imagetool.packing.parts import Part, divide
from imagetool.packing.reuse import INDEX, KEY_BYTES, KEYS, Earlier, EarlierBlob, PackedPart, blob_name, write_parts
from imagetool.tree.model import Source
from rootdisk.artifact.format import ZERO_CHUNK_MAX_BYTES, Chunk, ChunkIndex
from rootdisk.artifact.zstd_frames import compressor, seek_table, zero_frame
from rootdisk.oci.documents import Digest
from rootdisk.system.crew import Crew, Job

WAITING = 4  # frames for each thread that are made or wait to be written
AHEAD = 48  # chunks of data that are begun before metadata: as much work as the metadata of some thousand files
SYNCS = 4  # files at once: they share the file system's commits


@dataclass(frozen=True, slots=True)
class Packed:
    """A disk that was packed: its index, its blobs in order, and the number of chunks made and reused."""

    index: ChunkIndex
    parts: tuple[PackedPart, ...]
    new_chunks: int
    reused_chunks: int


class Frame(NamedTuple):
    """A chunk as it is written: the sha256 of its bytes, and its frame; chunks of zeros have none."""

    sha256: bytes
    data: bytes
    zero: bool = False
    reused: bool = False


class Early(Protocol):
    """Frames and blobs that were made before the plan."""

    def link(self, key: bytes, path: Path) -> EarlierBlob | None:
        """Give the blob with `key` the name `path` and return it, not yet synced; None if there is none."""

    def sync(self, key: bytes) -> None:
        """Sync the linked blob with `key`."""

    def frame(self, key: bytes) -> Frame | None:
        """Return the frame of the chunk with `key`; None if there is none."""


_local = threading.local()


def make_frame(raw: bytes | bytearray | memoryview) -> Frame:
    """Hash and compress a chunk."""
    if is_zero(raw):
        return Frame(bytes(32), b"", zero=True)
    if not hasattr(_local, "compressor"):
        _local.compressor = compressor()
    return Frame(hashlib.sha256(raw).digest(), _local.compressor.compress(raw))


def worker_count(threads: int | None) -> int:
    """Return how many threads share the work: `threads`, or one for each processor, at least two."""
    return threads or max(2, len(os.sched_getaffinity(0)))


def pack(
    plan: Plan,
    sources: Sequence[Source],
    folder: Path,
    crew: Crew,
    *,
    earlier: Earlier | None = None,
    early: Early | None = None,
    max_blob: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the disk of `plan` as a packed disk into the empty directory `folder`, and sync it.

    `earlier` has chunks and blobs to reuse, `early` frames and blobs of this disk. `max_blob` is the most bytes of a blob.
    `progress` is called with (bytes done, bytes in all) of data, without holes.

    Raises:
        BadInput: `max_blob` is too small for a chunk.
        OSError, DigestMismatch: a source cannot be read, or the files cannot be written.
    """
    total = sum(chunk.length for chunk in plan.chunks)

    def frame(chunk: DiskChunk) -> Frame:
        """Take a chunk's frame from an earlier disk, or from those made before the plan, or render and compress it."""
        if chunk.key is not None:
            earlier_frame = earlier.frame(chunk.key, chunk.length) if earlier is not None else None
            if earlier_frame is not None:
                return Frame(earlier_frame[1], earlier_frame[0], reused=True)
            early_frame = early.frame(chunk.key) if early is not None else None
            if early_frame is not None:
                return early_frame
        return make_frame(chunk.render(sources))

    parts = divide(plan.chunks, plan.size, max_blob)
    linked: dict[int, EarlierBlob] = {}
    made: dict[int, bytes] = {}  # the keys of those of them that are of this disk
    for number, part in enumerate(parts):
        earlier_blob = earlier and earlier.link(part.key, part.end - part.start, folder / blob_name(number))
        if earlier_blob:
            linked[number] = earlier_blob
        elif early and part.key and (early_blob := early.link(part.key, folder / blob_name(number))):
            linked[number] = early_blob
            made[number] = part.key
    wanted = [chunk for number, part in enumerate(parts) if number not in linked for chunk in part.chunks]
    with (
        contextlib.closing(_in_order(crew, frame, wanted)) as frames,
        ThreadPoolExecutor(SYNCS, "sync") as syncer,
    ):
        out = Packer()
        syncs = [syncer.submit(early.sync, key) for key in made.values()] if early is not None else []
        done = 0
        for number, part in enumerate(parts):
            if number in linked:
                out.take(part, linked[number], is_new=number in made)
                done += sum(chunk.length for chunk in part.chunks)
                continue
            fd = os.open(folder / blob_name(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                out.begin(fd)
                for chunk in part.chunks:
                    out.chunk(chunk, next(frames))
                    done += chunk.length
                    if progress is not None:
                        progress(done, total)
                out.end(part, last=part is parts[-1])
            except BaseException:
                os.close(fd)
                raise
            syncs.append(syncer.submit(_sync_and_close, fd, out.parts[-1].digest))
        index = ChunkIndex(plan.size, tuple(out.chunks))
        packed, keys = index.pack(), b"".join(out.keys)
        syncs += [syncer.submit(_write, folder / name, data) for name, data in ((INDEX, packed), (KEYS, keys))]
        syncs.append(syncer.submit(write_parts, folder, out.parts, packed, keys))
        for sync in syncs:
            sync.result()
    return Packed(index, tuple(out.parts), out.new, out.reused)


class Packer:
    """The packed disk while it is hashed and written, blob by blob."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.keys: list[bytes] = []
        self.parts: list[PackedPart] = []
        self.offset = 0  # in the zstd file, which is all blobs together
        self.at = 0  # on the disk
        self.new = self.reused = 0

    def begin(self, fd: int) -> None:
        """Begin a new blob in descriptor `fd`."""
        self.fd = fd
        self.hash = hashlib.sha256()
        self.first_offset, self.first_chunk = self.offset, len(self.chunks)

    def chunk(self, chunk: DiskChunk, frame: Frame) -> None:
        """Write the frame of `chunk`, and the hole before it."""
        if frame.zero:
            return  # becomes part of the hole that is written with what comes next
        self._hole(chunk.offset)
        assert chunk.offset == self.at
        self.reused += frame.reused
        self.new += not frame.reused
        self._add(frame.data, chunk.length, frame.sha256, False, chunk.key or bytes(KEY_BYTES))

    def end(self, part: Part, *, last: bool) -> None:
        """End the blob with `part`; the last one gets the seek table."""
        self._hole(part.end)
        if last:
            self._write(seek_table((chunk.blob_length, chunk.length) for chunk in self.chunks))
        size = self.blob_bytes
        digest = Digest("sha256", self.hash.hexdigest())
        self.parts.append(PackedPart(part.key, digest, size, len(self.chunks) - self.first_chunk))

    @property
    def blob_bytes(self) -> int:
        """The bytes of the present blob, so far."""
        return self.offset - self.first_offset

    def take(self, part: Part, earlier_blob: EarlierBlob, *, is_new: bool) -> None:
        """Use the blob `earlier_blob` for `part` as it is."""
        assert part.start == self.at
        move, shift = self.at - earlier_blob.chunks[0].offset, self.offset - earlier_blob.chunks[0].blob_offset
        for chunk in earlier_blob.chunks:
            self.chunks.append(
                Chunk(
                    chunk.offset + move,
                    chunk.length,
                    chunk.blob_offset + shift,
                    chunk.blob_length,
                    chunk.sha256,
                    chunk.zero,
                )
            )
        self.keys.append(earlier_blob.keys)
        self.parts.append(earlier_blob.part)
        self.offset += earlier_blob.part.size
        self.at = part.end
        count = sum(not chunk.zero for chunk in earlier_blob.chunks)
        self.new += count if is_new else 0
        self.reused += 0 if is_new else count

    def _hole(self, end: int) -> None:
        """Add zeros up to `end`."""
        while self.at < end:
            length = min(end - self.at, ZERO_CHUNK_MAX_BYTES)
            self._add(zero_frame(length), length, bytes(32), True, bytes(KEY_BYTES))

    def _add(self, data: bytes, length: int, sha256: bytes, zero: bool, key: bytes) -> None:
        self._write(data)
        self.chunks.append(Chunk(self.at, length, self.offset - len(data), len(data), sha256, zero))
        self.keys.append(key)
        self.at += length

    def _write(self, data: bytes) -> None:
        self.hash.update(data)
        self.offset += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]


def _in_order(
    crew: Crew, work: Callable[[DiskChunk], Frame], chunks: Sequence[DiskChunk]
) -> Generator[Frame, None, None]:
    """Yield the result of `work` for every chunk, in order; a few results a thread wait in memory.

    Some data is begun before the metadata, which comes first on the disk and is made by Python alone, one thread at a time.
    """
    data = (chunk for chunk in chunks if chunk.layer >= 0)
    ahead = {chunk: crew.submit(work, chunk) for chunk in islice(data, AHEAD)} if chunks and chunks[0].layer < 0 else {}
    waiting: deque[Job[Frame]] = deque()
    try:
        for chunk in chunks:
            waiting.append(ahead.pop(chunk) if chunk in ahead else crew.submit(work, chunk))
            if len(waiting) >= WAITING * crew.size:
                yield crew.result(waiting.popleft())
        while waiting:
            yield crew.result(waiting.popleft())
    finally:
        for job in (*waiting, *ahead.values()):
            job.cancel()


def _sync_and_close(fd: int, digest: Digest) -> None:
    try:
        os.fsync(fd)
        known_files.note(fd, digest)
    finally:
        os.close(fd)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
