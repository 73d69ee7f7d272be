"""The cuts of the zstd file into the artifact's disk blobs, and the key of a blob before it is made.

A blob ends where the data of a layer ends, or metadata begins: so the data of an unchanged layer is an unchanged blob,
which is neither made, nor sent, nor fetched again. Large layers are cut further, after chunks that their keys choose,
so that a change within one moves no other cut. The blobs one after the other are the zstd file.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Sequence
from typing import NamedTuple

from imagetool.ext4.chunk import DiskChunk
from rootdisk.artifact.format import ZERO_CHUNK_MAX_BYTES
from rootdisk.errors import BadInput

MIN_BYTES = 32 << 20  # of raw data in a blob that is not the end of a layer
MAX_BYTES = 1 << 30
MIB = 1 << 20
MEAN_CHUNKS = 64  # past the minimum
BLOBS_MEAN_COUNT = 32  # a large disk has larger blobs, not more of them

_GAP = struct.Struct("<QQ")


class Part(NamedTuple):
    """A part of the disk, from byte `start` to `end`: `chunks`, and holes between and after them.

    `key` names the blob's bytes: equal keys are equal bytes. It is None if a chunk has no key.
    """

    start: int
    end: int
    chunks: Sequence[DiskChunk]
    key: bytes | None


def divide(chunks: Sequence[DiskChunk], disk_size: int, max_blob: int | None = None) -> list[Part]:
    """Divide all chunks of a disk of `disk_size` bytes into parts; the first chunk is at 0.

    The last part has no key, because the seek table follows it. No blob will have more than `max_blob` bytes, however badly
    its chunks compress. BadInput: a single chunk may need more.
    """
    minimum = minimum_bytes(sum(chunk.length for chunk in chunks))
    room = None if max_blob is None else _Room(chunks, disk_size, max_blob)
    if max_blob is not None:
        minimum = min(minimum, max_blob // 4)  # a cut that a chunk chooses is better than one where the room ends
    firsts, size = [0], 0
    for number, (before, chunk) in enumerate(itertools.pairwise(chunks), 1):
        size += before.length
        chosen = before.key is not None and before.layer >= 0 and is_end(before.key, size, minimum)
        full = size + chunk.length > MAX_BYTES or (room is not None and not room.holds(firsts[-1], number))
        if before.layer != chunk.layer or chosen or full:
            firsts.append(number)
            size = 0
    ends = [*(chunks[first].offset for first in firsts[1:]), disk_size]
    parts = []
    for first, after, end in zip(firsts, [*firsts[1:], len(chunks)], ends, strict=True):
        own = chunks[first:after]
        parts.append(Part(own[0].offset, end, own, part_key(own, end) if after < len(chunks) else None))
    return parts


def minimum_bytes(total: int) -> int:
    """Return the least size of a blob, raw, of a disk with `total` bytes of data."""
    minimum = MIN_BYTES
    while minimum * BLOBS_MEAN_COUNT < total:
        minimum *= 2
    return minimum


def is_end(key: bytes, size: int, minimum: int) -> bool:
    """Return whether the chunk with `key` chooses to be the last of its blob, which has `size` bytes with it."""
    return size >= minimum and int.from_bytes(key[:4]) % MEAN_CHUNKS == 0


class _Room:
    """The most bytes that the chunks take, compressed, each with the hole after it; the last with the seek table."""

    def __init__(self, chunks: Sequence[DiskChunk], disk_size: int, max_blob: int) -> None:
        self._max_blob = max_blob
        ends = [*(chunk.offset for chunk in chunks[1:]), disk_size]
        most = [_most(chunk.length, end - chunk.offset) for chunk, end in zip(chunks, ends, strict=True)]
        most[-1] += 8 * (2 * len(chunks) + disk_size // ZERO_CHUNK_MAX_BYTES + 1) + 17
        if max(most) > max_blob:
            raise BadInput(
                f"max_blob: a chunk and what follows it may take {max(most)} bytes, more than {max_blob}",
                f"it has to be {-(-max(most) // MIB)}MiB or more",
            )
        self._before = [0, *itertools.accumulate(most)]

    def holds(self, first: int, last: int) -> bool:
        """Return whether chunks `first` to `last` are sure to fit into one blob."""
        return self._before[last + 1] - self._before[first] <= self._max_blob


def _most(length: int, span: int) -> int:
    """Bytes of the frames of a chunk of `length` and of the hole up to `span`: the bound of a reader, and 4 a 128 KiB."""
    frames = 1 + (span - length) // ZERO_CHUNK_MAX_BYTES
    return length + (length >> 7) + 1024 + 16 * frames + 4 * ((span >> 17) + frames)


def part_key(chunks: Sequence[DiskChunk], end: int) -> bytes | None:
    """Return the key of a part that has `chunks` and ends at `end`; None if one has no key. It does not depend on where they are."""
    name = hashlib.sha256(b"rootdisk part 1\0")
    for chunk, after in zip(chunks, [*(chunk.offset for chunk in chunks[1:]), end], strict=True):
        if chunk.key is None:
            return None
        name.update(chunk.key + _GAP.pack(chunk.length, after - chunk.offset))
    return name.digest()
