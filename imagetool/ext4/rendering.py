"""The bytes of metadata blocks, made from the places when they are written: nothing is kept, so memory holds the tree alone.

All functions only read, so any thread may call them.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from imagetool.ext4 import bitmaps, directory, extents, inode, xattr
from imagetool.ext4.chunk import BlockRun, fixed_run
from imagetool.ext4.directory import Entry
from imagetool.ext4.inode_numbers import subdirectories
from imagetool.ext4.placing import Placing
from imagetool.ext4.superblock import journal_superblock, superblock
from imagetool.tree.model import Directory, File, Inode, Slot, Special, Symlink
from rootdisk.errors import BadInput
from rootdisk.ext4.checksum import inode_seed
from rootdisk.ext4.format import (
    BLOCK,
    BLOCKS_PER_GROUP,
    EXT4_EXTENTS_FL,
    EXT4_GOOD_OLD_FIRST_INO,
    EXT4_IMMUTABLE_FL,
    EXT4_INDEX_FL,
    EXT4_JOURNAL_INO,
    EXT4_LINK_MAX,
    I_BLOCK_BYTES,
    INODE_SIZE,
    SUPERBLOCK_OFFSET,
)

_S_IFMT = 0o170000  # stat.S_IFMT is a call a name


class Rendering:
    """Metadata of what `placed` has placed. `uuid` and `hash_seed` are 16 bytes each, `time` is in seconds."""

    def __init__(self, placed: Placing, uuid: bytes, hash_seed: bytes, time: int) -> None:
        self.placed = placed
        self.blocks = placed.blocks
        self.by_number = placed.numbers.by_number
        self._parents = placed.numbers.parents()
        self.seed = placed.seed
        self.uuid, self.hash_seed, self.time = uuid, hash_seed, time
        self.journal = Inode(stat.S_IFREG | 0o600, mtime_ns=time * 1_000_000_000)
        self.journal.links = 1

    def journal_block(self) -> BlockRun:
        """Return the first block of the journal."""
        content = journal_superblock(self.placed.geometry.journal_blocks)
        return fixed_run(self.blocks.runs(EXT4_JOURNAL_INO)[0][1], content)

    def directory_blocks(self, number: int, first: int, count: int) -> bytes:
        """Return `count` blocks of directory `number` from its block `first` on."""
        node = self.by_number[number]
        assert isinstance(node, Directory)
        children, types = node.children, directory.FILE_TYPES
        parent, seed = self._parents[number], inode_seed(self.seed, number)
        index = self.placed.indexes.get(number)
        if index is None:
            entries = [(name, child.number, types[child.mode & _S_IFMT]) for name, child in sorted(children.items())]
            return directory.linear_block(number, parent, entries, seed)

        def entry(name: bytes) -> Entry:
            """Return a name's directory entry."""
            child = children[name]
            return name, child.number, types[child.mode & _S_IFMT]

        return b"".join(
            directory.index_block(block, index, number, parent, entry, seed) for block in range(first, first + count)
        )

    def link_blocks(self, number: int, _: int, count: int) -> bytes:
        """Return the block of a long link target."""
        node = self.by_number[number]
        assert isinstance(node, Symlink)
        assert count == 1
        return node.target.ljust(BLOCK, b"\0")

    def xattr_blocks(self, number: int, references: int, count: int) -> bytes:
        """Return the block of extended attributes that inode `number` shares with others."""
        node = self.by_number[number]
        assert node is not None
        assert node.xattrs
        assert count == 1
        _, outside = xattr.split(node.xattrs)
        return xattr.in_block(outside, self.placed.xattr_place(number), self.seed, references)

    def superblocks(self, groups: bitmaps.Groups) -> Iterator[BlockRun]:
        """Yield the superblock and the descriptors, and their backups.

        Those say what an empty file system would: as on any disk in use they tell where things are, not how much is
        free (e2fsck counts again), and so no version of an image changes them.
        """
        geometry = self.placed.geometry
        journal = extents.build(self.blocks.runs(EXT4_JOURNAL_INO), (), int)[0]
        empty = bitmaps.groups(geometry, (), b"\1" * EXT4_GOOD_OLD_FIRST_INO, (), self.seed)
        for group in geometry.backups:
            told = empty if group else groups
            raw = superblock(geometry, self.uuid, self.hash_seed, self.time, told, journal, group)
            content = (b"" if group else bytes(SUPERBLOCK_OFFSET)) + raw
            yield _superblock_run(group * BLOCKS_PER_GROUP, content.ljust(BLOCK, b"\0"), told.descriptors)

    def inodes(self, first: int, count: int) -> bytes:
        """Return inodes `first` and following as they stand in the table. BadInput: a device that ext4 cannot hold."""
        by_number = self.by_number
        out = []
        for number in range(first, first + count):
            node = by_number[number] if number < len(by_number) else None
            if number == EXT4_JOURNAL_INO:
                node = self.journal
            out.append(bytes(INODE_SIZE) if node is None else self._inode(number, node))
        return b"".join(out)

    def _inode(self, number: int, node: Inode) -> bytes:
        flags = EXT4_EXTENTS_FL
        inside = xattr.in_inode(xattr.split(node.xattrs)[0]) if node.xattrs else b""
        xattr_block = self.placed.xattr_place(number)
        runs = self.blocks.runs(number)
        blocks = (runs[0][2] if len(runs) == 1 else sum([run[2] for run in runs])) + (xattr_block > 0)
        i_block, in_tree = self.placed.tree_roots.get(number) or (extents.build(runs, (), int)[0], 0)
        blocks += in_tree
        if isinstance(node, File):
            size, links = node.size, node.links
        elif isinstance(node, Directory):
            size = self.blocks.count(number) * BLOCK
            links = 2 + subdirectories(node)
            links = 1 if links >= EXT4_LINK_MAX else links  # dir_nlink: 1 means many
            flags |= EXT4_INDEX_FL if size > BLOCK else 0
        elif isinstance(node, Symlink):
            size, links = len(node.target), node.links
            if size < I_BLOCK_BYTES:
                i_block, flags = node.target.ljust(I_BLOCK_BYTES, b"\0"), 0
        elif isinstance(node, Special):
            size, links, flags = 0, node.links, 0
            try:
                i_block = inode.device_block(node)
            except ValueError as err:
                raise BadInput(f"{self.placed.numbers.path_of(node)}: {err}") from err
        else:
            assert isinstance(node, Slot) or node is self.journal
            size = node.size if isinstance(node, Slot) else self.placed.geometry.journal_blocks * BLOCK
            links = node.links
            flags |= EXT4_IMMUTABLE_FL if isinstance(node, Slot) else 0
        return inode.pack(node, self.seed, number, size, links, blocks, flags, i_block, inside, xattr_block)


def _superblock_run(place: int, superblock_block: bytes, descriptors: bytes) -> BlockRun:
    def make(first: int, count: int) -> bytes:
        """Cut `count` blocks out of superblock and descriptors."""
        start, end = (first - place - 1) * BLOCK, (first - place - 1 + count) * BLOCK
        return descriptors[start:end] if start >= 0 else superblock_block + descriptors[: max(0, end)]

    return BlockRun(place, 1 + len(descriptors) // BLOCK, make)
