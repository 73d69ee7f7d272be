"""The content of all directories, which is the same wherever they lie: made once, and kept for the next disk."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import zstandard

from rootdisk.errors import BadInput
from rootdisk.ext4.format import BLOCK

_HEAD = struct.Struct("<8s32sQ")
_MAGIC = b"RDNAMES1"
_MAX_BYTES = 4 << 30


class Directories(NamedTuple):
    """In the order of their inode numbers: how many blocks each has, and all blocks.

    None of a directory that holds what is no layer's own: its content may be another one next time.
    """

    counts: array[int]
    content: Sequence[bytes | memoryview]  # block by block, as the plan has them: many directories are never joined

    def blocks(self) -> Iterator[Sequence[bytes | memoryview]]:
        """Each directory's blocks."""
        at = 0
        for count in self.counts:
            yield self.content[at : at + count]
            at += count

    def pack(self) -> bytes:
        """For a file in the cache; of this machine's byte order, as the cache is."""
        stream = zstandard.ZstdCompressor(level=1).compressobj(
            size=self.counts.itemsize * len(self.counts) + BLOCK * len(self.content)
        )
        parts = [stream.compress(self.counts.tobytes()), *map(stream.compress, self.content), stream.flush()]
        body = b"".join(parts)
        return _HEAD.pack(_MAGIC, hashlib.sha256(body).digest(), len(self.counts)) + body

    @classmethod
    def unpack(cls, raw: bytes) -> Directories:
        """What pack() wrote; BadInput where it is damaged: make it again."""
        try:
            magic, digest, count = _HEAD.unpack_from(raw)
            body = memoryview(raw)[_HEAD.size :]
            if magic != _MAGIC or hashlib.sha256(body).digest() != digest:
                raise BadInput("the directories are damaged")
            both = zstandard.ZstdDecompressor().decompress(body, max_output_size=_MAX_BYTES)
        except (struct.error, zstandard.ZstdError) as err:
            raise BadInput("the directories are damaged") from err
        whole = memoryview(both)
        counts = array("I", whole[: count * array("I").itemsize].tobytes())
        content = whole[count * counts.itemsize :]
        if len(counts) != count or sum(counts) * BLOCK != len(content):
            raise BadInput("the directories are damaged")
        return cls(counts, [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)])
