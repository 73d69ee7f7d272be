"""Directory blocks: one linear block, or an htree of as many levels as it needs; fs/ext4/namei.c.

Multi-block directories are always indexed: the kernel makes an index only when a directory leaves its first block.
Blocks are numbered within the directory, so their content does not depend on where they lie on the disk.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

from imagetool.ext4.htree import half_md4
from rootdisk.ext4.checksum import directory_block_checksum, index_block_checksum
from rootdisk.ext4.format import (
    BLOCK,
    DIRENT,
    DIRENT_TAIL,
    DIRENT_TAIL_TYPE,
    DX_COUNT,
    DX_ENTRY,
    DX_HASH_HALF_MD4,
    DX_NODE_LIMIT,
    DX_ROOT_INFO,
    DX_ROOT_LIMIT,
    DX_TAIL_BYTES,
    FT_BLKDEV,
    FT_CHRDEV,
    FT_DIR,
    FT_FIFO,
    FT_REG_FILE,
    FT_SYMLINK,
)

ROOM = BLOCK - DIRENT_TAIL.size
LEAF_FILL = ROOM * 3 // 4  # the guest's first new names should not split every leaf

FILE_TYPES = {
    stat.S_IFREG: FT_REG_FILE,
    stat.S_IFDIR: FT_DIR,
    stat.S_IFCHR: FT_CHRDEV,
    stat.S_IFBLK: FT_BLKDEV,
    stat.S_IFIFO: FT_FIFO,
    stat.S_IFLNK: FT_SYMLINK,
}

_PADDING = (b"", b"\0", b"\0\0", b"\0\0\0")
Entry = tuple[bytes, int, int]  # name, inode number, file type


def record(name: bytes) -> int:
    """Bytes an entry takes."""
    return (DIRENT.size + len(name) + 3) & ~3


def blocks(
    number: int, parent: int, entries: Sequence[Entry], seed: int, hash_seed: tuple[int, int, int, int]
) -> list[bytes]:
    """A directory's content: inode `number` in `parent`, its checksum `seed`. More than one block means an htree.

    `entries` in bytewise order of names. ValueError where two levels of index would not do (more than 10^7 names).
    """
    dots: list[Entry] = [(b".", number, FT_DIR), (b"..", parent, FT_DIR)]
    if sum([(len(name) + 11) & ~3 for name, _, _ in entries]) + 24 <= ROOM:  # record(), without a call a name
        return [_leaf([*dots, *entries], seed)]
    hashed = sorted((half_md4(name, hash_seed), name, inode, kind) for name, inode, kind in entries)
    leaves: list[tuple[int, list[Entry]]] = []  # first hash, entries
    used, last = ROOM, -1
    for value, name, inode, kind in hashed:
        size = record(name)
        same = value == last
        # Names of one hash stay together where they can; else the next leaf says that it continues them (bit 0).
        if used + size > (ROOM if same else LEAF_FILL):
            leaves.append((value | 1 if same else value, []))
            used = 0
        leaves[-1][1].append((name, inode, kind))
        used += size
        last = value
    return _index(dots, leaves, seed)


def _index(dots: list[Entry], leaves: list[tuple[int, list[Entry]]], seed: int) -> list[bytes]:
    """Root block, inner nodes, leaves. Levels are filled evenly from the left."""
    levels = 0
    widths = [len(leaves)]
    while widths[0] > DX_ROOT_LIMIT:
        widths.insert(0, -(-widths[0] // DX_NODE_LIMIT))
        levels += 1
    if levels > 1:  # EXT4_HTREE_LEVEL_COMPAT; a third level is for file systems with large_dir
        raise ValueError(f"{sum(len(entries) for _, entries in leaves)} names are more than an index holds")
    nodes = sum(widths[:-1])
    firsts = [first for first, _ in leaves]
    below = [(first, 1 + nodes + place) for place, first in enumerate(firsts)]
    inner: list[bytes] = []
    for width in reversed(widths[:-1]):
        start = 1 + nodes - len(inner) - width
        made, above = [], []
        for place in range(width):
            part = below[place * DX_NODE_LIMIT : (place + 1) * DX_NODE_LIMIT]
            made.append(_node(part, seed))
            above.append((part[0][0], start + place))
        inner = made + inner
        below = above
    return [_root(dots, below, levels, seed), *inner, *(_leaf(entries, seed) for _, entries in leaves)]


def _leaf(entries: Sequence[Entry], seed: int) -> bytes:
    parts: list[bytes] = []
    left, pack = ROOM, DIRENT.pack
    for name, inode, kind in entries[:-1]:
        length = len(name)
        size = (length + 11) & ~3
        parts += (pack(inode, size, length, kind), name, _PADDING[size - 8 - length])
        left -= size
    name, inode, kind = entries[-1]  # the last entry's record reaches to the tail
    parts.append(DIRENT.pack(inode, left, len(name), kind) + name.ljust(left - DIRENT.size, b"\0"))
    content = b"".join(parts)
    return content + DIRENT_TAIL.pack(0, DIRENT_TAIL.size, 0, DIRENT_TAIL_TYPE, directory_block_checksum(seed, content))


def _root(dots: list[Entry], entries: list[tuple[int, int]], levels: int, seed: int) -> bytes:
    head = DIRENT.pack(dots[0][1], 12, 1, FT_DIR) + b".\0\0\0"
    head += DIRENT.pack(dots[1][1], BLOCK - 12, 2, FT_DIR) + b"..\0\0"
    head += DX_ROOT_INFO.pack(0, DX_HASH_HALF_MD4, DX_ROOT_INFO.size, levels, 0)
    return _with_entries(head, entries, DX_ROOT_LIMIT, seed)


def _node(entries: list[tuple[int, int]], seed: int) -> bytes:
    return _with_entries(DIRENT.pack(0, BLOCK, 0, 0), entries, DX_NODE_LIMIT, seed)


def _with_entries(head: bytes, entries: list[tuple[int, int]], limit: int, seed: int) -> bytes:
    """A dx block: its head, count and limit where the first entry's hash would be, the entries, dx_tail."""
    used = head + DX_COUNT.pack(limit, len(entries), entries[0][1])
    used += b"".join(DX_ENTRY.pack(value, block) for value, block in entries[1:])
    reserved = bytes(4)
    checksum = index_block_checksum(seed, used, reserved)
    return used.ljust(BLOCK - DX_TAIL_BYTES, b"\0") + reserved + checksum.to_bytes(4, "little")
