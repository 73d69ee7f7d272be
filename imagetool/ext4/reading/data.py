"""The extents, bytes, link target and extended attributes of an inode; fs/ext4/extents.c, fs/ext4/xattr.c."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from imagetool.ext4 import xattr
from imagetool.ext4.reading.volume import Node, Volume, damaged
from rootdisk.errors import Unsupported
from rootdisk.ext4 import format as f
from rootdisk.ext4.checksum import extent_block_checksum, xattr_block_checksum

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """`count` blocks of the file from `logical` on lie at disk block `physical`; an unwritten one reads as zeros."""

    logical: int
    physical: int
    count: int
    written: bool


def extents(volume: Volume, node: Node) -> list[Extent]:
    """Return all extents of a file, ascending.

    Raises:
        BadInput: they overlap, leave the disk, or their tree is damaged.
        Unsupported: a file that has blocks without extents.
    """
    if not node.flags & f.EXT4_EXTENTS_FL:
        raise Unsupported(f"inode {node.number} has no extents", "rootdisk and mke2fs -t ext4 write them")
    found: list[Extent] = []
    _collect(volume, node, node.block, None, found, set())
    end = 0
    for extent in found:
        if extent.logical < end or extent.physical + extent.count > volume.blocks or not extent.count:
            raise damaged(f"inode {node.number}", "extents")
        end = extent.logical + extent.count
    return found


def _collect(volume: Volume, node: Node, raw: bytes, depth: int | None, found: list[Extent], blocks: set[int]) -> None:
    """Collect the extents below one block of the tree; `blocks` are its blocks so far: none is in two places."""
    magic, entries, limit, own, _ = f.EXTENT_HEADER.unpack_from(raw)
    wrong = own > f.EXTENT_DEPTH_MAX if depth is None else own != depth
    size = f.EXTENT.size
    first = f.EXTENT_HEADER.size
    if magic != f.EXT4_EXT_MAGIC or entries > limit or first + size * limit > len(raw) or wrong:
        raise damaged(f"inode {node.number}", "extent tree")
    if volume.checksums and depth is not None:
        tail = first + size * limit
        (stored,) = struct.unpack_from("<I", raw, tail)
        if extent_block_checksum(volume.node_seed(node), raw[:tail]) != stored:
            raise damaged(f"inode {node.number}", "checksum of its extent tree")
    for place in range(first, first + size * entries, size):
        if own:
            _, low, high, _ = f.EXTENT_INDEX.unpack_from(raw, place)
            block = low | high << 32
            if block in blocks:
                raise damaged(f"inode {node.number}", "extent tree")
            blocks.add(block)
            _collect(volume, node, volume.read_block(block), own - 1, found, blocks)
        else:
            logical, count, high, low = f.EXTENT.unpack_from(raw, place)
            written = count <= f.EXTENT_MAX_BLOCKS
            found.append(Extent(logical, low | high << 32, count if written else count - f.EXTENT_MAX_BLOCKS, written))


def data(volume: Volume, node: Node) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of a file as (offset, bytes), ascending; what lies between is a hole. Errors as of extents()."""
    for extent in extents(volume, node):
        if not extent.written:
            continue
        at, end = extent.logical * volume.block_size, (extent.logical + extent.count) * volume.block_size
        place = extent.physical * volume.block_size - at
        while at < min(end, node.size):
            length = min(READ_BYTES, end - at, node.size - at)
            yield at, volume.device.read(place + at, length)
            at += length


def read_at(volume: Volume, node: Node, offset: int, length: int) -> bytes:
    """Return the bytes of a file from `offset` on, fewer at its end; the caller bounds `length`. Errors as of extents()."""
    length = max(0, min(length, node.size - offset))
    found = bytearray(length)
    for extent in extents(volume, node):
        start = extent.logical * volume.block_size
        low, high = max(offset, start), min(offset + length, start + extent.count * volume.block_size)
        if low < high and extent.written:
            place = extent.physical * volume.block_size + low - start
            found[low - offset : high - offset] = volume.device.read(place, high - low)
    return bytes(found)


def target(volume: Volume, node: Node) -> bytes:
    """Return a symbolic link's target. BadInput: it is longer than a block."""
    if node.size < f.I_BLOCK_BYTES and not node.flags & f.EXT4_EXTENTS_FL:
        return node.block[: node.size]
    if node.size >= volume.block_size:
        raise damaged(f"inode {node.number}", "length of its link target")
    return b"".join(piece for _, piece in data(volume, node))


def xattrs(volume: Volume, node: Node) -> dict[bytes, bytes]:
    """Return the extended attributes by full name; POSIX ACLs in the kernel's form. BadInput: they are damaged."""
    found: dict[bytes, bytes] = {}
    if volume.inode_size > f.GOOD_OLD_INODE_SIZE:
        (extra,) = struct.unpack_from("<H", node.raw, f.GOOD_OLD_INODE_SIZE)
        start = f.GOOD_OLD_INODE_SIZE + extra + 4
        if start < volume.inode_size and node.raw[start - 4 : start] == f.XATTR_MAGIC.to_bytes(4, "little"):
            found |= _decoded(node, node.raw[start:], 0)
    if node.xattr_block:
        block = volume.read_block(node.xattr_block)
        magic, _, _, _, checksum, *_ = f.XATTR_HEADER.unpack_from(block)
        if magic != f.XATTR_MAGIC:
            raise damaged(f"inode {node.number}", "block of extended attributes")
        if volume.checksums and xattr_block_checksum(volume.seed, node.xattr_block, block) != checksum:
            raise damaged(f"inode {node.number}", "checksum of its extended attributes")
        found |= _decoded(node, block, f.XATTR_HEADER.size)
    return found


def _decoded(node: Node, raw: bytes, first: int) -> dict[bytes, bytes]:
    try:
        return xattr.decode(raw, first)
    except ValueError as err:
        raise damaged(f"inode {node.number}", f"extended attributes: {err}") from err
