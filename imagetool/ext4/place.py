"""Where file data goes: layer by layer, and within a layer so that a changed file changes only its own chunk.

Files of 1 MiB and more begin a chunk of their own. Smaller ones lie in path order in buckets, and a bucket ends after
a file whose path's crc says so; so buckets, and with them chunk digests, stay the same around an added, removed or
grown file. What a later layer hides keeps its place and becomes a hole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from imagetool.ext4.chunk import DataChunk, DiskChunk, Piece
from imagetool.ext4.extents import Run, merged
from imagetool.ext4.format import BLOCK
from imagetool.ext4.geometry import Space
from imagetool.tree.model import File, Layer

LAYER_ALIGN = (1 << 20) // BLOCK
BIG_BYTES = 1 << 20
BIG_CHUNK_BLOCKS = (512 << 10) // BLOCK
BUCKET_MIN_BLOCKS = (128 << 10) // BLOCK
BUCKET_MAX_BLOCKS = (1 << 20) // BLOCK
BUCKET_MEAN_BYTES = 384 << 10  # past the minimum

Place = Callable[[File, Sequence[Run]], None]


def layer_chunks(
    number: int, layer: Layer, space: Space, visible: Callable[[File], bool], place: Place
) -> Iterator[DiskChunk]:
    """Chunks of one layer's data in disk order; `place` is told each file's runs, hidden ones' too."""
    space.align(LAYER_ALIGN)
    bucket: list[File] = []
    blocks = 0

    def close() -> Iterator[DiskChunk]:
        nonlocal blocks
        if bucket:
            yield from _bucket(number, layer, bucket, blocks, space, visible, place)
            bucket.clear()
            blocks = 0

    big: list[File] = []
    for file in layer.files:
        if not file.size:
            continue
        if file.size >= BIG_BYTES or file.segments is not None:
            big.append(file)
            continue
        size = -(-file.size // BLOCK)
        if blocks + size > BUCKET_MAX_BLOCKS:
            yield from close()
        bucket.append(file)
        blocks += size
        if blocks >= BUCKET_MIN_BLOCKS and file.cut * BUCKET_MEAN_BYTES < size * BLOCK << 32:
            yield from close()
    yield from close()
    for file in big:
        yield from _big(number, layer, file, space, visible(file), place)


def _bucket(
    number: int,
    layer: Layer,
    files: list[File],
    blocks: int,
    space: Space,
    visible: Callable[[File], bool],
    place: Place,
) -> Iterator[DiskChunk]:
    start = space.take(blocks)
    at = 0
    pieces: list[Piece] = []
    for file in files:
        size = -(-file.size // BLOCK)
        if visible(file):
            pieces.append((at * BLOCK, file.offset, file.size))
        place(file, ((0, start + at, size),))
        at += size
    if pieces:
        yield DataChunk(start * BLOCK, blocks * BLOCK, number, layer.diff_id, pieces)


def _big(number: int, layer: Layer, file: File, space: Space, visible: bool, place: Place) -> Iterator[DiskChunk]:
    runs: list[Run] = []
    for first, count in _mapped(file):
        for done in range(0, count, BIG_CHUNK_BLOCKS):
            length = min(BIG_CHUNK_BLOCKS, count - done)
            start = space.take(length)
            runs.append((first + done, start, length))
            if visible:
                pieces = list(_pieces(file, (first + done) * BLOCK, length * BLOCK))
                yield DataChunk(start * BLOCK, length * BLOCK, number, layer.diff_id, pieces)
    place(file, merged(runs))


def _mapped(file: File) -> Iterator[tuple[int, int]]:
    """Runs of the file's blocks that hold data: (first, number)."""
    if file.segments is None:
        yield 0, -(-file.size // BLOCK)
        return
    first = end = 0
    for offset, _, length in file.segments:
        start, stop = offset // BLOCK, -(-(offset + length) // BLOCK)
        if not length:
            continue
        if start > end:
            if end > first:
                yield first, end - first
            first = start
        end = max(end, stop)
    if end > first:
        yield first, end - first


def _pieces(file: File, start: int, length: int) -> Iterator[Piece]:
    """What of the layer fills the file's bytes from `start` on."""
    end = min(start + length, file.size)
    for offset, source, size in file.segments or ((0, file.offset, file.size),):
        low, high = max(start, offset), min(end, offset + size)
        if low < high:
            yield low - start, source + low - offset, high - low
