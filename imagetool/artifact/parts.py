"""Where the zstd file is cut into the artifact's disk blobs, and what names a blob before it is made.

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

from imagetool.ext4 import DiskChunk

MIN_BYTES = 32 << 20  # of raw data in a blob that is not the end of a layer
MAX_BYTES = 1 << 30
MEAN_CHUNKS = 64  # past the minimum
BLOBS_MEAN_COUNT = 32  # a large disk has larger blobs, not more of them

_GAP = struct.Struct("<QQ")


class Part(NamedTuple):
    """The disk from byte `start` to `end`: `chunks`, and holes between and after them.

    `key` decides the blob's bytes; None where something else than keyed chunks does.
    """

    start: int
    end: int
    chunks: Sequence[DiskChunk]
    key: bytes | None


def divide(chunks: Sequence[DiskChunk], disk_size: int) -> list[Part]:
    """All chunks of a disk, which begin at 0, in parts. The last has no key, as the seek table comes after it."""
    minimum = MIN_BYTES
    while minimum * BLOBS_MEAN_COUNT < sum(chunk.length for chunk in chunks):
        minimum *= 2
    firsts, size = [0], 0
    for number, (before, chunk) in enumerate(itertools.pairwise(chunks), 1):
        size += before.length
        chosen = before.key is not None and before.layer >= 0 and int.from_bytes(before.key[:4]) % MEAN_CHUNKS == 0
        if before.layer != chunk.layer or (size >= minimum and chosen) or size + chunk.length > MAX_BYTES:
            firsts.append(number)
            size = 0
    ends = [*(chunks[first].offset for first in firsts[1:]), disk_size]
    parts = []
    for first, after, end in zip(firsts, [*firsts[1:], len(chunks)], ends, strict=True):
        own = chunks[first:after]
        parts.append(Part(own[0].offset, end, own, _key(own, end) if after < len(chunks) else None))
    return parts


def _key(chunks: Sequence[DiskChunk], end: int) -> bytes | None:
    name = hashlib.sha256(b"rootdisk part 1\0")
    for chunk, after in zip(chunks, [*(chunk.offset for chunk in chunks[1:]), end], strict=True):
        if chunk.key is None:
            return None
        name.update(chunk.key + _GAP.pack(chunk.length, after - chunk.offset))
    return name.digest()
