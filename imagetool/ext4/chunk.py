"""A chunk of the disk: where it lies, and how its bytes are made when they are wanted."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from imagetool.tree.model import Source
from rootdisk.ext4.format import BLOCK

Piece = tuple[int, int, int]  # offset in the chunk, offset in the layer, length
MetaBlock = tuple[int, bytes | memoryview]  # block number, content
GRID_BLOCKS = 64  # metadata chunks: 256 KiB
_PIECE = struct.Struct("<IQI")


class DiskChunk:
    """A run of the disk, `offset` and `length` in bytes, both multiples of 4096. Safe to render on any thread.

    `key` names the bytes: equal keys are equal bytes, now and in earlier disks. A data chunk's is the sha256 of the
    layer's diff ID and the pieces; most metadata has None.
    """

    __slots__ = ("key", "layer", "length", "offset")

    def __init__(self, offset: int, length: int, layer: int, key: bytes | None) -> None:
        self.offset = offset
        self.length = length
        self.layer = layer
        self.key = key

    def render(self, sources: Sequence[Source]) -> bytes | bytearray:
        """All bytes of the chunk."""
        raise NotImplementedError


class DataChunk(DiskChunk):
    """File data of one layer."""

    __slots__ = ("pieces",)

    def __init__(self, offset: int, length: int, layer: int, diff_id: str, pieces: Sequence[Piece]) -> None:
        self.pieces = b"".join([_PIECE.pack(*piece) for piece in pieces])  # an eighth of what tuples take
        name = hashlib.sha256(f"rootdisk chunk 1\0{diff_id}\0{length}\0".encode())
        name.update(self.pieces)
        super().__init__(offset, length, layer, name.digest())

    def render(self, sources: Sequence[Source]) -> bytearray:
        out = bytearray(self.length)
        view = memoryview(out)
        source = sources[self.layer]
        for offset, start, length in _PIECE.iter_unpack(self.pieces):
            source.read_into(view[offset : offset + length], start)
        return out


class MetadataChunk(DiskChunk):
    """File-system metadata, made from the plan when it is wanted."""

    __slots__ = ("_make",)

    def __init__(self, offset: int, length: int, make: Callable[[], bytes], key: bytes | None = None) -> None:
        super().__init__(offset, length, -1, key)
        self._make = make

    def render(self, sources: Sequence[Source]) -> bytes:
        made = self._make()
        assert len(made) == self.length
        return made


def metadata_chunks(meta: Sequence[MetaBlock]) -> Iterator[DiskChunk]:
    """Chunks of blocks, which ascend: each a run of them without a gap."""
    start = 0
    while start < len(meta):
        end, place = start + 1, meta[start][0]
        while end < len(meta) and end - start < GRID_BLOCKS and meta[end][0] == place + end - start:
            end += 1
        yield MetadataChunk(place * BLOCK, (end - start) * BLOCK, partial(_joined, meta, start, end))
        start = end


def _joined(meta: Sequence[MetaBlock], start: int, end: int) -> bytes:
    return b"".join([content for _, content in meta[start:end]])
