"""Directory blocks: one linear block, or an htree of as many levels as it needs; fs/ext4/namei.c.

Multi-block directories are always indexed: the kernel makes an index only when a directory leaves its first block.
Blocks are numbered within the directory, so their content does not depend on where they lie on the disk.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

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


class Index(NamedTuple):
    """The order of names in a directory of many blocks.

    `names` are by hash; a leaf has those up to its entry in `ends`, and `hashes` has the first hash of each. Bit 0 says
    that the leaf continues the hash of the one before.
    """

    names: list[bytes]
    ends: array[int]
    hashes: array[int]

    @property
    def nodes(self) -> int:
        """The number of blocks between the root block and the leaves."""
        leaves = len(self.ends)
        return 0 if leaves <= DX_ROOT_LIMIT else -(-leaves // DX_NODE_LIMIT)

    @property
    def blocks(self) -> int:
        """The number of the directory's blocks: the root, inner nodes, leaves."""
        return 1 + self.nodes + len(self.ends)


def record(name: bytes) -> int:
    """Return how many bytes an entry takes."""
    return (DIRENT.size + len(name) + 3) & ~3


def is_linear(names: Iterable[bytes]) -> bool:
    """Return whether one block holds a directory with these names, `.` and `..`."""
    return sum([(len(name) + 11) & ~3 for name in names]) + 24 <= ROOM  # record(), without a call a name


def index(names: Iterable[bytes], hash_seed: tuple[int, int, int, int]) -> Index:
    """Order the names of a directory of many blocks. ValueError: more than two levels of index hold (10^7 names)."""
    hashed = half_md4(names, hash_seed)
    ends, hashes = array("I"), array("I")
    used, last = ROOM, -1
    for place, (value, name) in enumerate(hashed):
        size = record(name)
        same = value == last
        # Names of one hash stay together if they can; else the next leaf says that it continues them (bit 0).
        if used + size > (ROOM if same else LEAF_FILL):
            if hashes:
                ends.append(place)
            hashes.append(value | 1 if same else value)
            used = 0
        used += size
        last = value
    ends.append(len(hashed))
    made = Index([name for _, name in hashed], ends, hashes)
    if made.nodes > DX_ROOT_LIMIT:  # EXT4_HTREE_LEVEL_COMPAT; a third level is for file systems with large_dir
        raise ValueError(f"{len(hashed)} names are more than an index holds")
    return made


def linear_block(number: int, parent: int, entries: Iterable[Entry], seed: int) -> bytes:
    """Return the only block of directory `number` in `parent`; fs/ext4/namei.c, ext4_generic_delete_entry() reads it.

    `entries` are in bytewise order of names, `seed` is the directory's checksum seed.
    """
    return _leaf([(b".", number, FT_DIR), (b"..", parent, FT_DIR), *entries], seed)


def index_block(block: int, made: Index, number: int, parent: int, entry: Callable[[bytes], Entry], seed: int) -> bytes:
    """Return block `block` of directory `number` in `parent`, which has many; struct dx_root, struct dx_node.

    The root is block 0, then come inner nodes, then leaves; levels are filled evenly from the left. `entry` gives the
    entry of a name, `seed` is the directory's checksum seed.
    """
    nodes = made.nodes
    if block > nodes:
        leaf = block - nodes - 1
        start = made.ends[leaf - 1] if leaf else 0
        return _leaf([entry(name) for name in made.names[start : made.ends[leaf]]], seed)
    firsts = made.hashes
    if block:
        start = (block - 1) * DX_NODE_LIMIT
        part = firsts[start : start + DX_NODE_LIMIT]
        return _node([(value, 1 + nodes + start + place) for place, value in enumerate(part)], seed)
    if nodes:
        below = [(firsts[node * DX_NODE_LIMIT], 1 + node) for node in range(nodes)]
    else:
        below = [(value, 1 + place) for place, value in enumerate(firsts)]
    return _root(number, parent, below, levels=1 if nodes else 0, seed=seed)


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


def _root(number: int, parent: int, entries: list[tuple[int, int]], levels: int, seed: int) -> bytes:
    head = DIRENT.pack(number, 12, 1, FT_DIR) + b".\0\0\0"
    head += DIRENT.pack(parent, BLOCK - 12, 2, FT_DIR) + b"..\0\0"
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
