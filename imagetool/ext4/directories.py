"""The order of names in all large directories. It does not depend on their place, so it is kept for the next disk.

Hashing and ordering a name takes 3 to 7 µs, and reading its place 0.01.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import zstandard

from imagetool.ext4.directory import Index
from imagetool.tree.model import Directory, Inode
from rootdisk.errors import BadInput

_HEAD = struct.Struct("<8s32sQQQ")
_MAGIC = b"RDNAMES2"  # the number is the format's version
_MAX_BYTES = 4 << 30


class Directories(NamedTuple):
    """The orders of names of all directories of many blocks, by ascending inode number.

    `names` and `leaves` count those of each directory; `order`, `ends` and `hashes` are as in Index, one directory after
    the other. A name is its place in the bytewise order of the directory's names. Directories with an entry that comes
    from no layer are left out: their content may change with the next build.
    """

    numbers: array[int]
    names: array[int]
    leaves: array[int]
    order: array[int]
    ends: array[int]
    hashes: array[int]

    @classmethod
    def of(cls, indexes: Mapping[int, Index], numbers: Sequence[int]) -> Directories:
        """Return the orders of the directories `numbers`, from `indexes` by inode number."""
        made = cls(array("I", numbers), *(array("I") for _ in range(5)))
        for number in numbers:
            index = indexes[number]
            places = {name: place for place, name in enumerate(sorted(index.names))}
            made.names.append(len(index.names))
            made.leaves.append(len(index.ends))
            made.order.extend(map(places.__getitem__, index.names))
            made.ends.extend(index.ends)
            made.hashes.extend(index.hashes)
        return made

    def indexes(self, by_number: Sequence[Inode | None]) -> Iterator[tuple[int, Index]]:
        """Yield each directory's inode number and index; `by_number` are the inodes of a tree of the same layers."""
        name = leaf = 0
        for number, names, leaves in zip(self.numbers, self.names, self.leaves, strict=True):
            order = self.order[name : name + names]
            ends, hashes = (column[leaf : leaf + leaves] for column in (self.ends, self.hashes))
            name, leaf = name + names, leaf + leaves
            node = by_number[number] if number < len(by_number) else None
            if isinstance(node, Directory) and len(node.children) == names == ends[-1] and max(order) < names:
                ordered = sorted(node.children)
                yield number, Index([ordered[place] for place in order], ends, hashes)

    def pack(self) -> bytes:
        """Return the bytes for a file in the cache; of this machine's byte order, as the cache is."""
        body = zstandard.ZstdCompressor(level=1).compress(b"".join(column.tobytes() for column in self))
        sizes = (len(self.numbers), len(self.order), len(self.ends))
        return _HEAD.pack(_MAGIC, hashlib.sha256(body).digest(), *sizes) + body

    @classmethod
    def unpack(cls, raw: bytes) -> Directories:
        """Return what pack() wrote. BadInput: it is damaged or of another version; make it again."""
        try:
            magic, digest, directories, names, leaves = _HEAD.unpack_from(raw)
            body = memoryview(raw)[_HEAD.size :]
            if magic != _MAGIC or hashlib.sha256(body).digest() != digest:
                raise BadInput("the directories are damaged")
            whole = zstandard.ZstdDecompressor().decompress(body, max_output_size=_MAX_BYTES)
        except (struct.error, zstandard.ZstdError) as err:
            raise BadInput("the directories are damaged") from err
        sizes = (directories, directories, directories, names, leaves, leaves)
        item = array("I").itemsize
        if sum(sizes) * item != len(whole):
            raise BadInput("the directories are damaged")
        columns, at = [], 0
        for size in sizes:
            columns.append(array("I", whole[at * item : (at + size) * item]))
            at += size
        made = cls(*columns)
        if sum(made.names) != names or sum(made.leaves) != leaves or 0 in made.leaves or 0 in made.names:
            raise BadInput("the directories are damaged")
        return made
