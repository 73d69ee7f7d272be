"""Chunks of the disk: their place, and how to make their bytes when they are needed."""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from imagetool.tree.model import Source
from rootdisk.ext4.format import BLOCK

Piece = tuple[int, int, int]  # offset in the chunk, offset in the layer, length
GRID_BLOCKS = 64  # metadata chunks: 256 KiB
_PIECE = struct.Struct("<IQI")
_ZEROS = bytes(256)
# What lies between two files of a tar, mostly a header, is read with them into here: a call takes longer.
_UNUSED = memoryview(bytearray(8 << 10))
BUFFERS_MAX_COUNT = 1000  # with one more for a gap at most IOV_MAX, limits.h


def is_zero(raw: bytes | bytearray | memoryview) -> bool:
    """Return whether there are only zeros. Most chunks begin with something else, so no zeros are made to compare with."""
    return raw[: len(_ZEROS)] == _ZEROS and bytes(raw) == bytes(len(raw))


class DiskChunk:
    """A run of the disk, `offset` and `length` in bytes, both multiples of 4096. Safe to render on any thread.

    `key` names the bytes: equal keys are equal bytes, now and in earlier disks. A data chunk's is the sha256 of the
    layer's diff ID and the pieces. Metadata has a key only if the layers alone decide it.
    """

    __slots__ = ("key", "layer", "length", "offset")

    def __init__(self, offset: int, length: int, layer: int, key: bytes | None) -> None:
        self.offset = offset
        self.length = length
        self.layer = layer
        self.key = key

    def render(self, sources: Sequence[Source]) -> bytes | bytearray:
        """Return all bytes of the chunk."""
        raise NotImplementedError


class DataChunk(DiskChunk):
    """File data of one layer."""

    __slots__ = ("pieces",)

    def __init__(self, offset: int, length: int, layer: int, diff_id: str, pieces: Sequence[Piece]) -> None:
        self.pieces = _packed(pieces)  # an eighth of what tuples take
        super().__init__(offset, length, layer, _data_key(diff_id, length, self.pieces))

    def render(self, sources: Sequence[Source]) -> bytearray:
        """Return all bytes of the chunk. Errors of reading the sources pass through."""
        out = bytearray(self.length)
        view = memoryview(out)
        source = sources[self.layer]
        buffers: list[memoryview] = []  # to be read at once, from byte `first` to byte `end` of the layer
        first = end = 0
        for offset, start, length in _PIECE.iter_unpack(self.pieces):
            gap = start - end
            if buffers and (not 0 <= gap <= len(_UNUSED) or len(buffers) >= BUFFERS_MAX_COUNT):
                source.read_into(buffers, first)
                buffers = []
            if not buffers:
                first = start
            elif gap:
                buffers.append(_UNUSED[:gap])
            buffers.append(view[offset : offset + length])
            end = start + length
        if buffers:
            source.read_into(buffers, first)
        return out


def data_key(diff_id: str, length: int, pieces: Sequence[Piece]) -> bytes:
    """Return the key of a data chunk of `length` bytes with `pieces` of the layer `diff_id`."""
    return _data_key(diff_id, length, _packed(pieces))


def _data_key(diff_id: str, length: int, packed: bytes) -> bytes:
    name = hashlib.sha256(f"rootdisk chunk 1\0{diff_id}\0{length}\0".encode())
    name.update(packed)
    return name.digest()


def _packed(pieces: Sequence[Piece]) -> bytes:
    return b"".join([_PIECE.pack(*piece) for piece in pieces])


class MetadataChunk(DiskChunk):
    """File-system metadata, made from the plan when it is rendered."""

    __slots__ = ("_make",)

    def __init__(self, offset: int, length: int, make: Callable[[], bytes], key: bytes | None = None) -> None:
        super().__init__(offset, length, -1, key)
        self._make = make

    def render(self, sources: Sequence[Source]) -> bytes:
        """Return all bytes of the chunk."""
        made = self._make()
        assert len(made) == self.length
        return made


class BlockRun(NamedTuple):
    """A run of `blocks` metadata blocks from disk block `place` on.

    make(first, count) gives the bytes of some of them, from disk block `first` on; name(first, count) names those bytes
    as a chunk's key does, or is None.
    """

    place: int
    blocks: int
    make: Callable[[int, int], bytes]
    name: Callable[[int, int], bytes | None] | None = None


def fixed_run(place: int, content: bytes) -> BlockRun:
    """Return a run of blocks whose bytes are there already; `content` is whole blocks."""

    def make(first: int, count: int) -> bytes:
        """Cut `count` blocks out of the content."""
        return content[(first - place) * BLOCK : (first - place + count) * BLOCK]

    return BlockRun(place, len(content) // BLOCK, make)


class OwnedBlocks:
    """Blocks that are made from inodes, as ascending runs: each has an inode and one more number, `extra`.

    The function that renders them decides what `extra` means: make(inode number, extra + place in the run, count).
    """

    __slots__ = ("extras", "owners", "starts", "stretches")

    def __init__(self) -> None:
        self.starts = array("Q")
        self.owners = array("I")
        self.extras = array("I")
        self.stretches: list[tuple[int, int]] = []  # first block, number of blocks without a gap

    def add(self, place: int, count: int, owner: int, extra: int = 0) -> None:
        """Give `count` blocks from `place` on to inode `owner`."""
        self.starts.append(place)
        self.owners.append(owner)
        self.extras.append(extra)
        if self.stretches and sum(self.stretches[-1]) == place:
            first, length = self.stretches[-1]
            self.stretches[-1] = (first, length + count)
        else:
            self.stretches.append((place, count))

    def runs(
        self, make: Callable[[int, int, int], bytes], name: Callable[[int, int], bytes | None] | None = None
    ) -> Iterator[BlockRun]:
        """Yield the stretches as runs to be rendered by `make`."""

        def made(first: int, count: int) -> bytes:
            """Make `count` blocks, for each part by its owner."""
            return b"".join([make(*part) for part in self.parts(first, count)])

        for place, count in self.stretches:
            yield BlockRun(place, count, made, name)

    def parts(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield owner, extra and number of blocks for each part of `count` blocks from `first` on, all in one stretch."""
        end = first + count
        at = bisect_right(self.starts, first) - 1
        while first < end:
            after = self.starts[at + 1] if at + 1 < len(self.starts) else end
            length = min(end, after) - first
            yield self.owners[at], self.extras[at] + first - self.starts[at], length
            first += length
            at += 1


def metadata_chunks(runs: Sequence[BlockRun]) -> Iterator[DiskChunk]:
    """Yield the chunks of `runs`, which ascend: each up to GRID_BLOCKS blocks without a gap."""
    parts: list[tuple[BlockRun, int, int]] = []  # run, first block, number of blocks
    start = size = 0
    for run in runs:
        place, end = run.place, run.place + run.blocks
        while place < end:
            if parts and (size == GRID_BLOCKS or place != start + size):
                yield _chunk(start, size, parts)
                parts, size = [], 0
            if not parts:
                start = place
            length = min(end - place, GRID_BLOCKS - size)
            parts.append((run, place, length))
            place += length
            size += length
    if parts:
        yield _chunk(start, size, parts)


def _chunk(start: int, size: int, parts: list[tuple[BlockRun, int, int]]) -> DiskChunk:
    names = [run.name(first, count) if run.name else None for run, first, count in parts]
    named = [name for name in names if name is not None]
    key = None if len(named) < len(names) else named[0] if len(named) == 1 else hashlib.sha256(b"".join(named)).digest()
    return MetadataChunk(start * BLOCK, size * BLOCK, partial(_joined, tuple(parts)), key)


def _joined(parts: Sequence[tuple[BlockRun, int, int]]) -> bytes:
    return b"".join([run.make(first, count) for run, first, count in parts])
