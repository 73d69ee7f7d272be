"""Every block of a tree gets its place, kind by kind; nothing is rendered here.

The order on the disk: journal; directories, long link targets, blocks of extended attributes; slots; data layer by layer;
blocks of extent trees.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from functools import partial

from imagetool.ext4 import directory, extents, xattr
from imagetool.ext4.blocks import Blocks
from imagetool.ext4.chunk import DiskChunk, OwnedBlocks, Piece
from imagetool.ext4.data_placement import layer_chunks
from imagetool.ext4.directories import Directories
from imagetool.ext4.directory import Index
from imagetool.ext4.extents import Run
from imagetool.ext4.geometry import Geometry
from imagetool.ext4.htree import seed_words
from imagetool.ext4.inode_numbers import Numbers
from imagetool.tree.model import Directory, File, Inode, Slot, Symlink, Tree
from rootdisk.artifact.format import SlotExtent
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.ext4.checksum import inode_seed
from rootdisk.ext4.format import BLOCK, EXT4_JOURNAL_INO, FILE_MAX_BYTES, I_BLOCK_BYTES, XATTR_REFCOUNT_MAX

SLOT_ALIGN = (64 << 10) // BLOCK


class Placing:
    """The places of a tree's parts on a disk of `geometry`; call place_all() once.

    `seed` is the disk's checksum seed, `hash_seed` that of names in directories. `kept` are orders of names from an
    earlier plan of a tree with the same layers.
    """

    def __init__(
        self,
        tree: Tree,
        numbers: Numbers,
        geometry: Geometry,
        seed: int,
        hash_seed: bytes,
        kept: Directories | None = None,
    ) -> None:
        self.tree = tree
        self.numbers = numbers
        self.geometry = geometry
        self.seed = seed
        self.hash_words = seed_words(hash_seed)
        self.kept = kept
        self.blocks = Blocks(geometry, len(numbers.by_number))
        self.special = array("I")  # inodes that may need blocks of another kind than file data
        for number, node in enumerate(numbers.by_number):
            if node is not None and (node.xattrs or isinstance(node, Symlink | Slot)):
                self.special.append(number)
        # Inodes from here on come from no layer; directories that hold one are touched.
        self.first_added = numbers.firsts[-1] if tree.layers[-1].names else len(numbers.by_number)
        self.touched: dict[int, Directory] = {}
        self.indexes: dict[int, Index] = {}  # of directories of many blocks
        self.directory_blocks = OwnedBlocks()  # extra: block of the directory
        self.link_blocks = OwnedBlocks()
        self.xattr_blocks = OwnedBlocks()  # owner: the first of those who share it, extra: how many they are
        self.xattr_places = array("Q")  # by inode number; empty if there are none
        self.slots: list[SlotExtent] = []
        # i_block, and blocks of their extent trees, for inodes whose extents need such
        self.tree_roots: dict[int, tuple[bytes, int]] = {}
        self.tree_blocks: list[tuple[int, bytes]] = []

    def place_all(self) -> list[DiskChunk]:
        """Place everything and return the chunks of file data. BadInput: something that ext4 cannot hold."""
        # First, so that its place, which superblocks name too, is that of every disk of the size.
        self.blocks.own(EXT4_JOURNAL_INO, self.blocks.take(self.geometry.journal_blocks))
        self._directories()
        self._links()
        self._xattrs()
        self._slots()
        chunks: list[DiskChunk] = []
        for number, layer in enumerate(self.tree.layers):
            chunks += layer_chunks(number, layer, self.blocks.space, _visible, self._big_file, self._bucket)
        self._extent_trees()
        return chunks

    def xattr_place(self, number: int) -> int:
        """Return the block of extended attributes of inode `number`, or 0."""
        return self.xattr_places[number] if self.xattr_places else 0

    def kept_directories(self) -> Directories:
        """Return the orders of names to keep for the next plan; `kept` itself if it has them all."""
        numbers = array("I", [n for n in self.indexes if n < self.first_added and n not in self.touched])
        if self.kept is not None and self.kept.numbers == numbers:
            return self.kept
        return Directories.of(self.indexes, numbers)

    def _directories(self) -> None:
        ordered = sorted(self.numbers.directories, key=_number)
        kept = dict(self.kept.indexes(self.numbers.by_number)) if self.kept is not None else {}
        for node in ordered:
            own = node.number
            added = own >= self.first_added
            if added or max(map(_number, node.children.values()), default=0) >= self.first_added:
                self.touched[own] = node
            if directory.is_linear(node.children):
                place = self.blocks.space.take(1)
                self.blocks.own(own, ((0, place, 1),))
                self.directory_blocks.add(place, 1, own)
                continue
            index = kept.get(own) if own not in self.touched else None
            index = self.indexes[own] = index or self._index(node)
            runs = self.blocks.take(index.blocks)
            self.blocks.own(own, runs)
            for logical, place, count in runs:
                self.directory_blocks.add(place, count, own, logical)

    def _index(self, node: Directory) -> Index:
        try:
            return directory.index(node.children, self.hash_words)
        except ValueError as err:
            raise BadInput(f"{self.numbers.path_of(node)}: {err}") from err

    def _links(self) -> None:
        for number in self.special:
            node = self.numbers.by_number[number]
            if isinstance(node, Symlink) and len(node.target) >= I_BLOCK_BYTES:
                if len(node.target) >= BLOCK:
                    path = self.numbers.path_of(node)
                    raise BadInput(f"{path}: a link target longer than {BLOCK - 1} bytes")
                runs = self.blocks.take(1)
                self.blocks.own(number, runs)
                self.link_blocks.add(runs[0][1], 1, number)

    def _xattrs(self) -> None:
        """Inodes with the same attributes share a block, up to a limit."""
        blocks: dict[bytes, int] = {}  # number by content
        owners, block_of = array("I"), array("I")
        for number in self.special:
            node = self.numbers.by_number[number]
            assert node is not None
            if not node.xattrs:
                continue
            try:
                _, outside = xattr.split(node.xattrs)
            except (ValueError, RootdiskError) as err:
                raise BadInput(f"{self.numbers.path_of(node)}: {err}") from err
            if outside:
                content = hashlib.sha256(repr(outside).encode()).digest()
                owners.append(number)
                block_of.append(blocks.setdefault(content, len(blocks)))
        if not owners:
            return
        self.xattr_places = array("Q", bytes(8 * len(self.numbers.by_number)))
        for numbers in _shared(owners, block_of):
            place = self.blocks.take_one()
            self.xattr_blocks.add(place, 1, numbers[0], len(numbers))
            for number in numbers:
                self.xattr_places[number] = place

    def _slots(self) -> None:
        for number in self.special:
            node = self.numbers.by_number[number]
            if isinstance(node, Slot):
                blocks = node.size // BLOCK
                start = self.blocks.space.take(blocks, SLOT_ALIGN)
                self.blocks.own(number, [(0, start, blocks)])
                self.slots.append(SlotExtent(node.name, start * BLOCK, node.size))

    def _bucket(self, files: Sequence[File], start: int) -> list[Piece]:
        """Small files from block `start` on, each beginning a block; the pieces of those that can be seen."""
        starts, counts, use = self.blocks.starts, self.blocks.counts, self.blocks.use
        pieces: list[Piece] = []
        first = here = start
        for file in files:
            after = here - (-file.size // BLOCK)
            if file.links:
                starts[file.number], counts[file.number] = here, after - here
                pieces.append(((here - start) * BLOCK, file.offset, file.size))
            else:
                if first < here:
                    use(first, here - first)
                first = after
            here = after
        if first < here:
            use(first, here - first)
        return pieces

    def _big_file(self, file: File, runs: Sequence[Run]) -> None:
        if file.links:
            if file.size > FILE_MAX_BYTES:
                path = self.numbers.path_of(file)
                raise BadInput(f"{path}: a file of {file.size} bytes", f"ext4 holds {FILE_MAX_BYTES} at most")
            self.blocks.own(file.number, runs)

    def _extent_trees(self) -> None:
        for number in self.blocks.scattered:
            runs = self.blocks.other_runs[number]
            places = [self.blocks.take_one() for _ in range(extents.tree_blocks(len(runs)))]
            i_block, made = extents.build(runs, places, partial(inode_seed, self.seed, number))
            self.tree_roots[number] = (i_block, len(places))
            self.tree_blocks += made


def _number(node: Inode) -> int:
    return node.number


def _visible(file: File) -> bool:
    return file.links > 0


def _shared(owners: array[int], block_of: array[int]) -> Iterator[Sequence[int]]:
    """Group inodes by the attribute block that they share, in the order of first use; a block has a maximum number of inodes."""
    order = sorted(range(len(owners)), key=block_of.__getitem__)
    first = 0
    for place in range(1, len(order) + 1):
        full = place - first == XATTR_REFCOUNT_MAX
        if place == len(order) or full or block_of[order[place]] != block_of[order[first]]:
            yield [owners[at] for at in order[first:place]]
            first = place
