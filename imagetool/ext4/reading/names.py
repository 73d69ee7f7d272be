"""A directory's names; fs/ext4/dir.c, fs/ext4/namei.c.

The linear blocks hold all names, with an index or without. Of an index only its blocks' places are read, to skip them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator

from imagetool.ext4.reading.data import Extent, extents
from imagetool.ext4.reading.volume import Node, Volume, damaged
from rootdisk.ext4 import format as f
from rootdisk.ext4.checksum import directory_block_checksum, index_block_checksum

DIRECTORY_MAX_BYTES = 4 << 30
_INDEX_LEVELS_MAX = 3
_DX_BLOCK_MASK = 0x0FFF_FFFF  # dx_get_block(): the upper bits are reserved


def entries(volume: Volume, node: Node) -> Iterator[tuple[bytes, int, int]]:
    """Yield names, inode numbers and file types of a directory, without `.` and `..`, as they stand on the disk.

    BadInput: the directory is damaged.
    """
    if node.size > DIRECTORY_MAX_BYTES or node.size % volume.block_size:
        raise damaged(f"directory {node.number}", "size")
    indexed = bool(node.flags & f.EXT4_INDEX_FL)
    inner = _index_blocks(volume, node) if indexed else frozenset()
    seed = volume.node_seed(node)
    for logical, block in enumerate(_blocks(volume, node)):
        if logical in inner:
            continue
        end = volume.block_size
        if volume.checksums and not (indexed and logical == 0):
            end -= f.DIRENT_TAIL.size
            *_, kind, checksum = f.DIRENT_TAIL.unpack_from(block, end)
            if kind != f.DIRENT_TAIL_TYPE or directory_block_checksum(seed, block[:end]) != checksum:
                raise damaged(f"directory {node.number}", f"checksum of block {logical}")
        yield from _records(node, block, end)


def _records(node: Node, block: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    at = 0
    while at < end:
        number, length, name_length, kind = f.DIRENT.unpack_from(block, at)
        start = at + f.DIRENT.size
        name = block[start : start + name_length]
        if length < f.DIRENT.size + name_length or length % 4 or length < 12 or at + length > end:
            raise damaged(f"directory {node.number}", "entry")
        at += length
        if number and name not in (b".", b".."):
            if not name or b"/" in name or b"\0" in name:
                raise damaged(f"directory {node.number}", "name")
            yield name, number, kind


def _index_blocks(volume: Volume, node: Node) -> frozenset[int]:
    """Numbers of the blocks that hold only an htree's inner nodes: their one fake entry spans the block."""
    runs = extents(volume, node)
    first = _block_of(volume, node, runs, 0)
    levels = first[f.DX_ROOT_LEVELS_OFFSET]
    found: set[int] = set()
    if levels > _INDEX_LEVELS_MAX:
        raise damaged(f"directory {node.number}", "index")
    above = _dx_blocks(volume, node, first, f.DX_ROOT_COUNT_OFFSET)
    for _ in range(levels):
        below: list[int] = []
        for number in above:
            if number in found:  # each has one place
                raise damaged(f"directory {node.number}", "index")
            found.add(number)
            below += _dx_blocks(volume, node, _block_of(volume, node, runs, number), f.DX_NODE_COUNT_OFFSET)
        above = below
        if len(above) > node.size // volume.block_size:
            raise damaged(f"directory {node.number}", "index")
    return frozenset(found)


def _dx_blocks(volume: Volume, node: Node, block: bytes, offset: int) -> list[int]:
    limit, count, first = f.DX_COUNT.unpack_from(block, offset)
    size = f.DX_ENTRY.size
    if not 0 < count <= limit <= (volume.block_size - offset) // size:
        raise damaged(f"directory {node.number}", "index")
    if volume.checksums:
        tail = block[offset + size * limit :][: f.DX_TAIL_BYTES]
        reserved, stored = struct.unpack("<4sI", tail.ljust(f.DX_TAIL_BYTES, b"\0"))
        if index_block_checksum(volume.node_seed(node), block[: offset + size * count], reserved) != stored:
            raise damaged(f"directory {node.number}", "checksum of its index")
    rest = [f.DX_ENTRY.unpack_from(block, offset + size * place)[1] for place in range(1, count)]
    return [number & _DX_BLOCK_MASK for number in (first, *rest)]


def _blocks(volume: Volume, node: Node) -> Iterator[bytes]:
    """Yield the blocks of a directory, holes refused."""
    end = 0
    for extent in extents(volume, node):
        if extent.logical != end or not extent.written:
            raise damaged(f"directory {node.number}", "extents: a hole")
        for place in range(extent.physical, extent.physical + extent.count):
            yield volume.read_block(place)
        end = extent.logical + extent.count
    if end * volume.block_size != node.size:
        raise damaged(f"directory {node.number}", "size")


def _block_of(volume: Volume, node: Node, runs: list[Extent], logical: int) -> bytes:
    place = bisect_right(runs, logical, key=_first) - 1
    if place >= 0 and logical < runs[place].logical + runs[place].count:
        return volume.read_block(runs[place].physical + logical - runs[place].logical)
    raise damaged(f"directory {node.number}", "index")


def _first(extent: Extent) -> int:
    return extent.logical
