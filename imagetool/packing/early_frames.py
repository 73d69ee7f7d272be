"""Frames of large files, made while their layer is inflated and its bytes are hot; the tar itself gets holes.

How a large file is cut into chunks depends on the file alone (imagetool/ext4/data_placement.py), so the frames are those
that the plan asks for, by the chunk's key. They are written in the order of the tar, and cut into blobs as
imagetool/packing/parts.py will cut them if nothing else lies between, which is known by the blob's key: such a blob needs
only its name, and its bytes go to the disk while the next ones are made. Where that guess was wrong, the frames are copied.
Those of files that a later layer hides are made for nothing.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import zstandard

from imagetool.ext4.chunk import DiskChunk, data_key
from imagetool.ext4.data_placement import BIG_BYTES, BIG_CHUNK_BLOCKS
from imagetool.packing import known_files
from imagetool.packing.pack import Frame, Packer, make_frame
from imagetool.packing.parts import Part, is_end, minimum_bytes, part_key
from imagetool.packing.reuse import EarlierBlob
from imagetool.tree.model import Source
from imagetool.tree.tar_stream import Take
from rootdisk.ext4.format import BLOCK
from rootdisk.system.crew import Crew, Job
from rootdisk.system.scratch import unnamed_file

CHUNK_BYTES = BIG_CHUNK_BLOCKS * BLOCK
WAITING = 16  # chunks of a layer in memory
FILES_MAX_COUNT = 100  # that are open at once


class _Place(NamedTuple):
    """A frame in the file `fd`, and the sha256 of its content. A chunk of zeros has no frame."""

    fd: int
    at: int
    size: int
    sha256: bytes


class EarlyFrames:
    """The frames of all layers of a disk; a context manager."""

    def __init__(self, folder: Path, crew: Crew) -> None:
        """Keep them in unnamed files of `folder`; `crew` makes them."""
        self._folder = folder
        self._files: list[int] = []
        self._places: dict[bytes, _Place] = {}
        self._blobs: dict[bytes, tuple[int, EarlierBlob, Future[None]]] = {}
        self._syncer = ThreadPoolExecutor(1, "early-sync")
        self.crew = crew

    def layer(self, diff_id: str, disk_bytes: Callable[[], int]) -> LayerFrames:
        """Return what takes the large files of a layer. `disk_bytes` estimates how much data the whole disk will have."""
        return LayerFrames(self, diff_id, disk_bytes)

    def frame(self, key: bytes) -> Frame | None:
        """Return the frame of the chunk with `key`; None if there is none."""
        place = self._places.get(key)
        return Frame(place.sha256, self.stored(place), zero=not place.size) if place is not None else None

    def link(self, key: bytes, path: Path) -> EarlierBlob | None:
        """Give the blob with `key` the name `path` and return it, not yet synced; None if there is none."""
        found = self._blobs.get(key)
        if found is None:
            return None
        fd, blob, _ = found
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # without it no link is followed
        try:
            os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=folder, follow_symlinks=True)
        except OSError:  # a file system without unnamed files: its frames are copied
            return None
        finally:
            os.close(folder)
        return blob

    def sync(self, key: bytes) -> None:
        """Sync the blob with `key` and the name that it was given. OSError: its bytes cannot be written."""
        fd, blob, written = self._blobs[key]
        written.result()
        os.fsync(fd)
        known_files.note(fd, blob.part.digest)

    def stored(self, place: _Place) -> bytes:
        """Read a frame."""
        return os.pread(place.fd, place.size, place.at)

    def has_room(self) -> bool:
        """Return whether another file may be opened."""
        return len(self._files) < FILES_MAX_COUNT

    def open_file(self) -> int:
        """Open a file for a blob."""
        fd = unnamed_file(self._folder, 0o644)
        self._files.append(fd)
        return fd

    def keep(self, key: bytes, place: _Place) -> None:
        """Keep where the frame of a chunk is."""
        self._places[key] = place

    def keep_blob(self, fd: int, blob: EarlierBlob) -> None:
        """Keep a blob, and begin to sync it."""
        assert blob.part.key is not None
        self._blobs[blob.part.key] = fd, blob, self._syncer.submit(os.fdatasync, fd)

    def __enter__(self) -> EarlyFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self._syncer.shutdown(cancel_futures=True)
        for fd in self._files:
            os.close(fd)


class LayerFrames:
    """The large files of one layer: takes them from its tar, and is their source from then on. One thread gives, several read."""

    def __init__(self, frames: EarlyFrames, diff_id: str, disk_bytes: Callable[[], int]) -> None:
        self._frames, self._diff_id, self._disk_bytes = frames, diff_id, disk_bytes
        self._starts: list[int] = []  # of the chunks, in the tar
        self._sizes: list[int] = []  # of the data in them; only the last one of a file may have less than CHUNK_BYTES
        self._places: list[_Place] = []
        self._waiting: deque[Job[Frame]] = deque()
        self._raw, self._filled, self._left = bytearray(), 0, 0
        self._out = Packer()
        self._fd = -1
        self._blob: list[DiskChunk] = []  # of the blob that is being written; the offset is as if nothing lay between
        self._blob_bytes = self._at = 0

    def wants(self, size: int) -> bool:
        """See `LargeFiles`."""
        return size >= BIG_BYTES and (self._fd >= 0 or self._frames.has_room())

    def begin(self, start: int, size: int) -> Take:
        """See `LargeFiles`."""
        self._left = size
        return self._take

    def finish(self) -> None:
        """Write the remaining frames. Errors of making and writing frames pass through."""
        while self._waiting:
            self._append(self._frames.crew.result(self._waiting.popleft()))
        if self._blob:
            self._end()

    def read_into(self, buffers: Sequence[memoryview], offset: int, rest: Source) -> None:
        """Fill `buffers` from byte `offset` of the tar; what is not in a large file is read from `rest`."""
        end = offset + sum(map(len, buffers))
        number = bisect_left(self._starts, end) - 1  # the last one that begins before
        if number < 0 or self._starts[number] + self._sizes[number] <= offset:
            rest.read_into(buffers, offset)
            return
        for buffer in buffers:
            self._fill(buffer, offset, rest)
            offset += len(buffer)

    def _fill(self, buffer: memoryview, offset: int, rest: Source) -> None:
        while buffer:
            number = bisect_right(self._starts, offset) - 1
            within = offset - self._starts[number] if number >= 0 else 0
            if number >= 0 and within < self._sizes[number]:
                count = min(len(buffer), self._sizes[number] - within)
                buffer[:count] = self._content(number)[within : within + count]
            else:
                after = self._starts[number + 1] if number + 1 < len(self._starts) else offset + len(buffer)
                count = min(len(buffer), after - offset)
                rest.read_into([buffer[:count]], offset)
            buffer, offset = buffer[count:], offset + count

    def _content(self, number: int) -> bytes:
        place = self._places[number]
        if not place.size:
            return bytes(self._sizes[number])
        return zstandard.ZstdDecompressor().decompress(self._frames.stored(place))

    def _take(self, at: int, part: memoryview) -> None:
        """Gather the data of a file into chunks."""
        while part:
            if not self._filled:
                size = min(CHUNK_BYTES, self._left)
                self._starts.append(at)
                self._sizes.append(size)
                if len(part) >= size and not size % BLOCK:  # as it is: a copy would keep the other threads waiting
                    self._left -= size
                    self._submit(part[:size])
                    part, at = part[size:], at + size
                    continue
                self._raw = bytearray(-(-size // BLOCK) * BLOCK)
            count = min(len(part), self._sizes[-1] - self._filled)
            self._raw[self._filled : self._filled + count] = part[:count]
            part, at = part[count:], at + count
            self._filled += count
            self._left -= count
            if self._filled == self._sizes[-1]:
                self._submit(self._raw)
                self._filled = 0

    def _submit(self, raw: bytearray | memoryview) -> None:
        if len(self._waiting) == WAITING:
            self._append(self._frames.crew.result(self._waiting.popleft()))
        self._waiting.append(self._frames.crew.submit(make_frame, raw))

    def _append(self, frame: Frame) -> None:
        """Write the frame of the next chunk into the present blob, and end that where the disk's will probably end."""
        number = len(self._places)
        start, size = self._starts[number], self._sizes[number]
        length = -(-size // BLOCK) * BLOCK
        key = data_key(self._diff_id, length, [(0, start, size)])
        if self._fd < 0:
            self._fd = self._frames.open_file()
            self._out.begin(self._fd)
        chunk = DiskChunk(self._at, length, 0, key)
        self._out.chunk(chunk, frame)
        at = self._out.blob_bytes - len(frame.data)
        self._places.append(_Place(self._fd, at, len(frame.data), frame.sha256))
        self._frames.keep(key, self._places[-1])
        self._blob.append(chunk)
        self._at += length
        self._blob_bytes += length
        if self._frames.has_room() and is_end(key, self._blob_bytes, minimum_bytes(self._disk_bytes())):
            self._end()

    def _end(self) -> None:
        first = self._out.first_chunk
        self._out.end(Part(self._blob[0].offset, self._at, self._blob, part_key(self._blob, self._at)), last=False)
        part, chunks, keys = self._out.parts[-1], self._out.chunks[first:], self._out.keys[first:]
        self._frames.keep_blob(self._fd, EarlierBlob(Path(), part, tuple(chunks), b"".join(keys)))
        self._fd, self._blob, self._blob_bytes = -1, [], 0
