"""The placement of file data: layer by layer, and within a layer so that a changed file changes only its own chunk.

Files of 1 MiB and more begin a chunk of their own. Smaller ones lie in path order in buckets, and a bucket ends after
a file whose path's crc says so; so buckets, and with them chunk digests, stay the same around an added, removed or
grown file. What a later layer hides keeps its place and becomes a hole.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

from imagetool.ext4.chunk import DataChunk, DiskChunk, Piece
from imagetool.ext4.extents import Run, merged
from imagetool.ext4.geometry import Space
from imagetool.tree.model import File, Layer
from rootdisk.ext4.format import BLOCK

LAYER_ALIGN = (1 << 20) // BLOCK
BIG_BYTES = 1 << 20
BIG_CHUNK_BLOCKS = (512 << 10) // BLOCK
BUCKET_MIN_BLOCKS = (128 << 10) // BLOCK
BUCKET_MAX_BLOCKS = (1 << 20) // BLOCK
BUCKET_MEAN_BYTES = 384 << 10  # past the minimum

Place = Callable[[File, Sequence[Run]], None]
# Small files that lie one after the other from a block on; gives the pieces of those that can be seen.
Bucket = Callable[[Sequence[File], int], Sequence[Piece]]


def layer_chunks(
    number: int, layer: Layer, space: Space, visible: Callable[[File], bool], place: Place, bucket: Bucket
) -> Iterator[DiskChunk]:
    """Place one layer's data and yield its chunks in disk order.

    `number` is the layer's, `space` gives the blocks, `visible` says if a file has a name. `place` and `bucket` receive the
    places of large and small files, also of hidden ones.
    """
    space.align(LAYER_ALIGN)
    waiting: list[File] = []
    blocks = 0

    def close() -> Iterator[DiskChunk]:
        """Yield the bucket that is being filled, and begin another."""
        nonlocal blocks
        if waiting:
            yield from _bucket(number, layer, waiting, blocks, space, bucket)
            waiting.clear()
            blocks = 0

    big: list[File] = []
    cuts = layer.cuts or array("I", bytes(4 * len(layer.files)))
    for file, cut in zip(layer.files, cuts, strict=True):
        if not file.size:
            continue
        if file.size >= BIG_BYTES or file.segments is not None:
            big.append(file)
            continue
        size = -(-file.size // BLOCK)
        if blocks + size > BUCKET_MAX_BLOCKS:
            yield from close()
        waiting.append(file)
        blocks += size
        if blocks >= BUCKET_MIN_BLOCKS and cut * BUCKET_MEAN_BYTES < size * BLOCK << 32:
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
    bucket: Bucket,
) -> Iterator[DiskChunk]:
    start = space.take(blocks)
    pieces = bucket(files, start)
    if pieces:
        yield DataChunk(start * BLOCK, blocks * BLOCK, number, layer.diff_id, pieces)


def _big(number: int, layer: Layer, file: File, space: Space, visible: bool, place: Place) -> Iterator[DiskChunk]:
    segments = file.segments or ((0, file.offset, file.size),)
    starts = [offset for offset, _, _ in segments]
    runs: list[Run] = []
    for parts in _parts(file):
        count = sum(length for _, length in parts)
        start = space.take(count)
        at = 0
        pieces: list[Piece] = []
        for first, length in parts:
            runs.append((first, start + at, length))
            low, high = first * BLOCK, min((first + length) * BLOCK, file.size)
            for offset, source, size in segments[max(0, bisect_right(starts, low) - 1) : bisect_left(starts, high)]:
                begin, end = max(low, offset), min(high, offset + size)
                if begin < end:
                    pieces.append((at * BLOCK + begin - low, source + begin - offset, end - begin))
            at += length
        if visible:
            yield DataChunk(start * BLOCK, count * BLOCK, number, layer.diff_id, pieces)
    place(file, merged(runs))


def _parts(file: File) -> Iterator[list[tuple[int, int]]]:
    """The file's blocks with data, chunk by chunk: runs (first, number) of together at most BIG_CHUNK_BLOCKS."""
    parts: list[tuple[int, int]] = []
    room = BIG_CHUNK_BLOCKS
    for first, count in _mapped(file):
        while count:
            length = min(count, room)
            parts.append((first, length))
            first, count, room = first + length, count - length, room - length
            if not room:
                yield parts
                parts, room = [], BIG_CHUNK_BLOCKS
    if parts:
        yield parts


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
