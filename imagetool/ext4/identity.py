"""Names of metadata chunks, so that an earlier disk of the same layers has them: equal names are equal bytes.

What the layers decide is named by them and by the places of everything; what was changed since is named by its values.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left

from imagetool.ext4 import xattr
from imagetool.ext4.inode_numbers import subdirectories
from imagetool.ext4.placing import Placing
from imagetool.tree.model import Inode


class Identity:
    """Names for the chunks of a plan; `layers` decides the layers and the UUID."""

    def __init__(self, placed: Placing, layers: bytes) -> None:
        self.placed = placed
        self._directories = hashlib.sha256(b"rootdisk directories 1" + layers)
        self._inodes = _inodes_name(placed, layers)
        self._changed = sorted(map(self._change, placed.tree.layers[-1].changed))

    def _change(self, node: Inode) -> tuple[int, int, int, int, int, object]:
        number = node.number
        xattrs = (xattr.split(node.xattrs), self.placed.xattr_place(number)) if node.xattrs else None
        return number, node.mode, node.uid, node.gid, getattr(node, "links", 0), xattrs

    def inodes(self, first: int, after: int) -> bytes | None:
        """Return the name of inodes `first` to `after` (exclusive); None if a layer does not decide all of them."""
        if after > self.placed.first_added:
            return None
        changed = self._changed[bisect_left(self._changed, (first,)) : bisect_left(self._changed, (after,))]
        return hashlib.sha256(self._inodes + repr((first, after, changed)).encode()).digest()

    def directory_blocks(self, first: int, count: int) -> bytes | None:
        """Return the name of blocks of directories; None if a layer does not decide all of them."""
        name = self._directories.copy()
        for part in self.placed.directory_blocks.parts(first, count):
            if part[0] in self.placed.touched:
                return None
            name.update(b"%d %d %d\0" % part)
        return name.digest()


def _inodes_name(placed: Placing, layers: bytes) -> bytes:
    """Return what decides the inodes of the layers, but for those changed since: the layers and where everything lies."""
    first, blocks = placed.first_added, placed.blocks
    name = hashlib.sha256(b"rootdisk inodes 1" + layers)
    for column in (blocks.starts, blocks.counts, placed.xattr_places):
        name.update(memoryview(column)[:first])  # no copies: they have an item for each inode
    for places in (blocks.other_runs, placed.tree_roots):
        name.update(repr([(number, place) for number, place in places.items() if number < first]).encode())
    for number, node in placed.touched.items():
        if number < first:
            name.update(repr((number, subdirectories(node), blocks.count(number))).encode())
    return name.digest()
