"""Tree in, plan out: every block has its place before the first byte is written.

Order on the disk: superblock, descriptors, bitmaps, inode tables; journal; directories, long link targets, blocks of
extended attributes; slots; data layer by layer; blocks of extent trees.
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imagetool.ext4 import bitmaps, directory, extents, inode, xattr
from imagetool.ext4.chunk import GRID_BLOCKS, DiskChunk, MetaBlock, MetadataChunk, Piece, metadata_chunks
from imagetool.ext4.data_placement import layer_chunks
from imagetool.ext4.directories import Directories
from imagetool.ext4.extents import Run
from imagetool.ext4.geometry import Geometry, Space, TooSmall
from imagetool.ext4.htree import seed_words
from imagetool.ext4.inode_numbers import Numbers, assign, path_of_inode
from imagetool.ext4.superblock import journal_superblock, superblock
from imagetool.tree.model import Directory, File, Inode, Slot, Source, Special, Symlink, Tree
from rootdisk.artifact.format import LayerInodes, SlotExtent
from rootdisk.durable import advice, write_at
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.ext4.checksum import disk_seed, inode_seed
from rootdisk.ext4.format import (
    BLOCK,
    BLOCKS_PER_GROUP,
    EXT4_EXTENTS_FL,
    EXT4_GOOD_OLD_FIRST_INO,
    EXT4_IMMUTABLE_FL,
    EXT4_INDEX_FL,
    EXT4_JOURNAL_INO,
    EXT4_LINK_MAX,
    EXTENTS_INLINE,
    FILE_MAX_BYTES,
    I_BLOCK_BYTES,
    INODE_SIZE,
    SUPERBLOCK_OFFSET,
    XATTR_REFCOUNT_MAX,
)

SLOT_ALIGN = (64 << 10) // BLOCK
_NO_XATTRS = (b"", 0)
_S_IFMT = 0o170000  # stat.S_IFMT is a call a name


class DiskOptions(NamedTuple):
    """`size` is the disk's bytes, `uuid` 16 bytes, `time` the superblock's times in seconds.

    `directories` are those of an earlier plan of a tree with the same layers and UUID. `identity` decides the layers and
    the UUID, and so with what this plan adds the chunks of inode tables; b"" for none that are named.
    """

    size: int
    uuid: bytes
    time: int = 0
    directories: Directories | None = None
    identity: bytes = b""


class Plan(NamedTuple):
    """A disk of `size` bytes: `chunks` ascend and do not overlap; between them are holes.

    `layers` are each layer's diff ID and its first inode number: numbers below the next layer's are its own.
    """

    size: int
    slots: tuple[SlotExtent, ...]
    chunks: Sequence[DiskChunk]
    free_bytes: int
    layers: tuple[LayerInodes, ...]
    directories: Directories


def plan(tree: Tree, options: DiskOptions) -> Plan:
    """Where everything of `tree` goes. BadInput: too small a size (with one that would do), or a file ext4 cannot hold."""
    numbers = assign(tree)
    try:
        return _plan(tree, options, numbers)
    except TooSmall as err:
        mebibytes = _enough(tree, options, numbers, err.needed)
        raise BadInput(
            f"size: the image does not fit into {options.size >> 20} MiB", f"it needs {mebibytes} MiB or more"
        ) from err


def _plan(tree: Tree, options: DiskOptions, numbers: Numbers) -> Plan:
    geometry = Geometry.of(options.size // BLOCK * BLOCK, len(numbers.by_number))
    return _Planner(tree, options, numbers, geometry).plan()


def _enough(tree: Tree, options: DiskOptions, numbers: Numbers, needed: int) -> int:
    """Return the least MiB that do. A larger disk has more metadata of its own, so each bound is tried."""
    mebibytes = options.size >> 20
    while True:
        mebibytes = max(mebibytes + 1, -(-needed >> 20))
        try:
            _plan(tree, options._replace(size=mebibytes << 20), numbers)
        except TooSmall as err:
            needed = err.needed
        else:
            return mebibytes


def write_disk(
    plan: Plan,
    sources: Sequence[Source],
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """The raw, sparse disk as a new file at `path`; `progress` as pack's."""
    total, done = sum(chunk.length for chunk in plan.chunks), 0
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        try:
            os.ftruncate(fd, plan.size)
        except OSError as err:
            folder = Path(path).absolute().parent
            raise RootdiskError(
                f"cannot write the disk in {folder}: {err.strerror}", advice(err, plan.size, folder)
            ) from err
        for chunk in plan.chunks:
            raw = chunk.render(sources)
            if raw != bytes(len(raw)):
                write_at(fd, raw, chunk.offset)
            done += chunk.length
            if progress is not None:
                progress(done, total)
    finally:
        os.close(fd)


class _Planner:
    """The state of one planning."""

    def __init__(self, tree: Tree, options: DiskOptions, numbers: Numbers, geometry: Geometry) -> None:
        self.tree = tree
        self.options = options
        self.numbers = numbers
        self.geometry = geometry
        self.space = Space(geometry)
        self.seed = disk_seed(options.uuid)
        self.hash_seed = hashlib.sha256(b"rootdisk hash seed" + options.uuid).digest()[:16]
        self.hash_words = seed_words(self.hash_seed)
        self.meta: list[MetaBlock] = []
        # Where each inode's blocks are: nearly all have one run from their first block on, which takes little here.
        self.starts = array("Q", bytes(8 * len(numbers.by_number)))
        self.counts = array("I", bytes(4 * len(numbers.by_number)))
        self.other_runs: dict[int, Sequence[Run]] = {}
        self.used: list[tuple[int, int]] = []
        self.used_end = -1
        self.scattered: list[int] = []  # inodes whose runs need a tree
        self.special = [  # inodes that may need blocks of another kind than file data
            (number, node)
            for number, node in enumerate(numbers.by_number)
            if node is not None and (node.xattrs or isinstance(node, Symlink | Slot))
        ]
        self.tree_blocks: dict[
            int, tuple[bytes, int]
        ] = {}  # i_block and number of tree blocks, where it is no plain tree
        self.directory_blocks: dict[int, int] = {}
        self.xattrs: dict[int, tuple[bytes, int]] = {}  # in the inode, and the block or 0
        self.slots: list[SlotExtent] = []
        # Inodes from here on are no layer's; directories that hold one are touched.
        self.first_added = numbers.firsts[-1] if tree.layers[-1].names else len(numbers.by_number)
        self.touched: list[tuple[int, Directory]] = []
        self.journal = Inode(stat.S_IFREG | 0o600, mtime_ns=options.time * 1_000_000_000)

    def plan(self) -> Plan:
        # First, so that its place, which superblocks name too, is that of every disk of the size.
        self.own(EXT4_JOURNAL_INO, self.take(self.geometry.journal_blocks))
        directories = self.directories()
        self.symlinks()
        self.extended_attributes()
        self.reserve_slots()
        chunks: list[DiskChunk] = []
        for number, layer in enumerate(self.tree.layers):
            chunks += layer_chunks(number, layer, self.space, self.visible, self.place, self.bucket)
        self.extent_trees()
        if self.space.next > self.geometry.blocks:
            raise TooSmall(self.space.next * BLOCK)
        used_inodes = [n < 11 or i is not None for n, i in enumerate(self.numbers.by_number)]
        groups = bitmaps.groups(self.geometry, self.used, used_inodes, self.directory_blocks, self.seed)
        self.meta.append(
            (
                self.starts[EXT4_JOURNAL_INO] or self.other_runs[EXT4_JOURNAL_INO][0][1],
                journal_superblock(self.geometry.journal_blocks),
            )
        )
        self.meta += groups.bitmaps
        chunks += self.superblocks(groups)
        chunks += self.inode_tables(groups, self.identity())
        self.meta.sort(key=lambda item: item[0])
        chunks += metadata_chunks(self.meta)
        chunks.sort(key=lambda chunk: chunk.offset)
        layers = zip(self.tree.layers, self.numbers.firsts, strict=True)
        return Plan(
            self.geometry.blocks * BLOCK,
            tuple(self.slots),
            chunks,
            groups.free_blocks * BLOCK,
            tuple(LayerInodes(layer.diff_id, first) for layer, first in layers),
            directories,
        )

    def take(self, count: int) -> list[Run]:
        """`count` blocks for one file, as its runs."""
        runs, logical = [], 0
        for start, length in self.space.take_runs(count):
            runs.append((logical, start, length))
            logical += length
        return extents.merged(runs)

    def own(self, number: int, runs: Sequence[Run]) -> None:
        """The runs are inode `number`'s."""
        if len(runs) == 1 and not runs[0][0]:
            _, self.starts[number], self.counts[number] = runs[0]
        else:
            self.other_runs[number] = runs
            if len(runs) > EXTENTS_INLINE:
                self.scattered.append(number)
        for _, start, length in runs:
            self.use(start, length)

    def runs(self, number: int) -> Sequence[Run]:
        start = self.starts[number]
        return ((0, start, self.counts[number]),) if start else self.other_runs.get(number, ())

    def use(self, start: int, length: int) -> None:
        """Blocks are in use: as runs, which mostly continue the last one."""
        if start == self.used_end:
            first, count = self.used[-1]
            self.used[-1] = (first, count + length)
        else:
            self.used.append((start, length))
        self.used_end = start + length

    def visible(self, file: File) -> bool:
        return file in self.numbers.links

    def bucket(self, files: Sequence[File], start: int) -> list[Piece]:
        """Small files from block `start` on, each beginning a block; the pieces of those that can be seen."""
        links, number = self.numbers.links, self.numbers.number
        pieces: list[Piece] = []
        first = here = start
        for file in files:
            after = here - (-file.size // BLOCK)
            if file in links:
                own = number[file]
                self.starts[own], self.counts[own] = here, after - here
                pieces.append(((here - start) * BLOCK, file.offset, file.size))
            else:
                if first < here:
                    self.use(first, here - first)
                first = after
            here = after
        if first < here:
            self.use(first, here - first)
        return pieces

    def place(self, file: File, runs: Sequence[Run]) -> None:
        if file in self.numbers.links:
            if file.size > FILE_MAX_BYTES:
                path = path_of_inode(self.numbers, file)
                raise BadInput(f"{path}: a file of {file.size} bytes", f"ext4 holds {FILE_MAX_BYTES} at most")
            self.own(self.numbers.number[file], runs)

    def directories(self) -> Directories:
        """Make the directories, but for those kept from an earlier plan, and place them; those to keep for the next."""
        number, first = self.numbers.number, self.first_added
        ordered = sorted(self.numbers.parents, key=number.__getitem__)
        base = [node for node in ordered if number[node] < first]
        kept = self.options.directories
        if kept is None or len(kept.counts) != len(base):
            kept = Directories(array("I", bytes(4 * len(base))), ())
        counts = array("I")
        content: list[bytes | memoryview] = []
        found = kept.blocks()
        blocks: Sequence[bytes | memoryview]
        for node in ordered:
            own = number[node]
            added = own >= first
            blocks = [] if added else next(found)
            touched = added or max(map(number.__getitem__, node.children.values()), default=0) >= first
            if touched:
                self.touched.append((own, node))
            if touched or not blocks:
                blocks = self.directory(node)
            if not added:
                counts.append(0 if touched else len(blocks))
                content += [] if touched else blocks
            self.place_directory(own, blocks)
        return kept if counts == kept.counts else Directories(counts, content)

    def directory(self, node: Directory) -> list[bytes]:
        """The blocks of one directory."""
        number, types = self.numbers.number, directory.FILE_TYPES
        own = number[node]
        entries = [(name, number[child], types[child.mode & _S_IFMT]) for name, child in sorted(node.children.items())]
        parent = number[self.numbers.parents[node]]
        try:
            return directory.blocks(own, parent, entries, inode_seed(self.seed, own), self.hash_words)
        except ValueError as err:
            raise BadInput(f"{path_of_inode(self.numbers, node)}: {err}") from err

    def place_directory(self, own: int, blocks: Sequence[bytes | memoryview]) -> None:
        self.directory_blocks[own] = len(blocks)
        if len(blocks) == 1:
            place = self.space.take(1)
            self.own(own, ((0, place, 1),))
            self.meta.append((place, blocks[0]))
            return
        runs = self.take(len(blocks))
        self.own(own, runs)
        places = (start + n for _, start, length in runs for n in range(length))
        self.meta += zip(places, blocks, strict=True)

    def symlinks(self) -> None:
        for number, node in self.special:
            if isinstance(node, Symlink) and len(node.target) >= I_BLOCK_BYTES:
                if len(node.target) >= BLOCK:
                    raise BadInput(f"{path_of_inode(self.numbers, node)}: a link target longer than {BLOCK - 1} bytes")
                runs = self.take(1)
                self.own(number, runs)
                self.meta.append((runs[0][1], node.target.ljust(BLOCK, b"\0")))

    def extended_attributes(self) -> None:
        shared: dict[bytes, list[int]] = {}
        for number, node in self.special:
            if node.xattrs:
                try:
                    inside, block = xattr.encode(node.xattrs)
                except (ValueError, RootdiskError) as err:
                    raise BadInput(f"{path_of_inode(self.numbers, node)}: {err}") from err
                self.xattrs[number] = (inside, 0)
                if block:
                    shared.setdefault(block, []).append(number)
        for block, owners in shared.items():
            for start in range(0, len(owners), XATTR_REFCOUNT_MAX):
                part = owners[start : start + XATTR_REFCOUNT_MAX]
                place = self.space.take(1)
                self.use(place, 1)
                self.meta.append((place, xattr.with_checksum(block, place, self.seed, len(part))))
                for number in part:
                    self.xattrs[number] = (self.xattrs[number][0], place)

    def reserve_slots(self) -> None:
        for number, node in self.special:
            if isinstance(node, Slot):
                blocks = node.size // BLOCK
                start = self.space.take(blocks, SLOT_ALIGN)
                self.own(number, [(0, start, blocks)])
                self.slots.append(SlotExtent(node.name, start * BLOCK, node.size))

    def extent_trees(self) -> None:
        for number in self.scattered:
            runs = self.other_runs[number]
            count = extents.tree_blocks(len(runs))
            places = [self.space.take(1) for _ in range(count)]
            for place in places:
                self.use(place, 1)
            i_block, made = extents.build(runs, places, partial(inode_seed, self.seed, number))
            self.tree_blocks[number] = (i_block, count)
            self.meta += made

    def superblocks(self, groups: bitmaps.Groups) -> Iterator[DiskChunk]:
        """The first goes to the other metadata; the chunks of its backups.

        Those say what an empty file system would: as on any disk in use they tell where things are, not how much is
        free (e2fsck counts again), and so no version of an image changes them.
        """
        journal = extents.build(self.runs(EXT4_JOURNAL_INO), (), int)[0]
        empty = bitmaps.groups(self.geometry, (), [True] * EXT4_GOOD_OLD_FIRST_INO, (), self.seed)
        for group in self.geometry.backups:
            told = empty if group else groups
            raw = superblock(self.geometry, self.options.uuid, self.hash_seed, self.options.time, told, journal, group)
            content = ((b"" if group else bytes(SUPERBLOCK_OFFSET)) + raw).ljust(BLOCK, b"\0") + told.descriptors
            start = group * BLOCKS_PER_GROUP
            blocks = [(start + at // BLOCK, content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)]
            if group:
                yield from metadata_chunks(blocks)
            else:
                self.meta += blocks

    def identity(self) -> bytes:
        """What decides the inodes of the layers, but for those changed since: the layers and where everything lies."""
        if not self.options.identity:
            return b""
        first = self.first_added
        name = hashlib.sha256(b"rootdisk inodes 1" + self.options.identity)
        name.update(self.starts[:first].tobytes() + self.counts[:first].tobytes())
        xattr_blocks = {number: block for number, (_, block) in self.xattrs.items() if block}
        for places in (self.other_runs, self.tree_blocks, xattr_blocks):
            name.update(repr([(number, place) for number, place in places.items() if number < first]).encode())
        for number, node in self.touched:
            if number < first:
                name.update(repr((number, self.numbers.subdirectories(node), self.directory_blocks[number])).encode())
        return name.digest()

    def inode_tables(self, groups: bitmaps.Groups, identity: bytes) -> Iterator[DiskChunk]:
        number_of, links = self.numbers.number, self.numbers.links
        changed = sorted(
            (number := number_of[node], node.mode, node.uid, node.gid, links.get(node, 0), self.xattrs.get(number))
            for node in self.tree.layers[-1].changed
        )
        per_group = self.geometry.inodes_per_group
        for group, start, blocks in groups.tables:
            for done in range(0, blocks, GRID_BLOCKS):
                count = min(GRID_BLOCKS, blocks - done)
                number = group * per_group + 1 + done * BLOCK // INODE_SIZE
                make = partial(self.inodes, number, count * BLOCK // INODE_SIZE)
                after = number + count * BLOCK // INODE_SIZE
                key = None
                if identity and after <= self.first_added:
                    own = changed[bisect_left(changed, (number,)) : bisect_left(changed, (after,))]
                    key = hashlib.sha256(identity + repr((number, after, own)).encode()).digest()
                yield MetadataChunk((start + done) * BLOCK, count * BLOCK, make, key)

    def inodes(self, first: int, count: int) -> bytes:
        """Inodes `first` and following as they stand in the table."""
        by_number = self.numbers.by_number
        out = []
        for number in range(first, first + count):
            node = by_number[number] if number < len(by_number) else None
            if number == EXT4_JOURNAL_INO:
                node = self.journal
            out.append(bytes(INODE_SIZE) if node is None else self.inode(number, node))
        return b"".join(out)

    def inode(self, number: int, node: Inode) -> bytes:
        inside, block = self.xattrs.get(number, _NO_XATTRS)
        links, flags = self.numbers.links.get(node, 1), EXT4_EXTENTS_FL
        runs = self.runs(number)
        blocks = (runs[0][2] if len(runs) == 1 else sum([run[2] for run in runs])) + (block > 0)
        i_block, in_tree = self.tree_blocks.get(number) or (extents.build(runs, (), int)[0], 0)
        blocks += in_tree
        if isinstance(node, File):
            size = node.size
        elif isinstance(node, Directory):
            size = self.directory_blocks[number] * BLOCK
            links = 2 + self.numbers.subdirectories(node)
            links = 1 if links >= EXT4_LINK_MAX else links  # dir_nlink: 1 means many
            flags |= EXT4_INDEX_FL if size > BLOCK else 0
        elif isinstance(node, Symlink):
            size = len(node.target)
            if size < I_BLOCK_BYTES:
                i_block, flags = node.target.ljust(I_BLOCK_BYTES, b"\0"), 0
        elif isinstance(node, Special):
            size, flags = 0, 0
            try:
                i_block = inode.device_block(node)
            except ValueError as err:
                raise BadInput(f"{path_of_inode(self.numbers, node)}: {err}") from err
        else:
            assert isinstance(node, Slot) or node is self.journal
            size = node.size if isinstance(node, Slot) else self.geometry.journal_blocks * BLOCK
            flags |= EXT4_IMMUTABLE_FL if isinstance(node, Slot) else 0
        return inode.pack(node, self.seed, number, size, links, blocks, flags, i_block, inside, block)
