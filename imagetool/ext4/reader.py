"""An ext4 disk read back: names, inodes, data, extended attributes. It shares only structures and checksums with the writer.

    with Reader.open(path) as disk:
        node = disk.lookup(b"/etc/passwd")      symbolic links are not followed
        b"".join(data for _, data in disk.data(node))

BadInput says that the disk is damaged; Unsupported names a feature that is not read. See imagetool/ext4/reading/.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from imagetool.ext4.reading import data as contents
from imagetool.ext4.reading import names
from imagetool.ext4.reading.data import Extent
from imagetool.ext4.reading.volume import Node, Volume, damaged
from rootdisk.artifact.disk import RawDisk
from rootdisk.errors import BadInput
from rootdisk.ext4 import format as f
from rootdisk.limits import LINKS_MAX, LONG_PATH_MAX
from rootdisk.text import printable

NAMES_MAX_COUNT = 1 << 24  # in one walk, and looked at to find one path

Wants = Callable[[bytes, int, int], bool]  # a name, its inode's number, and its type as the directory has it

__all__ = ["Extent", "Node", "Reader"]


class Reader(Volume):
    """A disk that is being read; a context manager."""

    @classmethod
    def open(cls, path: Path) -> Reader:
        """Open the raw disk at `path`. BadInput: it cannot be read, or it is not an ext4 disk."""
        device = RawDisk(path)
        try:
            return cls(device)
        except BadInput as err:
            device.close()
            raise BadInput(f"{printable(path)}: {err.message}", err.hint) from err

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the device."""
        self.device.close()

    def extents(self, node: Node) -> list[Extent]:
        """Return all extents of a file, ascending."""
        return contents.extents(self, node)

    def data(self, node: Node) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes of a file as (offset, bytes), ascending; what lies between is a hole."""
        return contents.data(self, node)

    def content(self, node: Node) -> Iterator[bytes]:
        """Yield the bytes of a file in pieces, holes as zeros."""
        at = 0
        for offset, data in self.data(node):
            yield from _zeros(offset - at)
            yield data
            at = offset + len(data)
        yield from _zeros(node.size - at)

    def read_at(self, node: Node, offset: int, length: int) -> bytes:
        """Return the bytes of a file from `offset` on, fewer at its end; the caller bounds `length`."""
        return contents.read_at(self, node, offset, length)

    def target(self, node: Node) -> bytes:
        """Return a symbolic link's target."""
        return contents.target(self, node)

    def xattrs(self, node: Node) -> dict[bytes, bytes]:
        """Return extended attributes by full name; POSIX ACLs in the kernel's form."""
        return contents.xattrs(self, node)

    def entries(self, node: Node) -> Iterator[tuple[bytes, int, int]]:
        """Yield names, inode numbers and file types of a directory, without `.` and `..`, as they stand on the disk."""
        return names.entries(self, node)

    def read_through(self, node: Node) -> None:
        """Read everything that belongs to an inode: attributes, and its target or bytes. BadInput says what is damaged."""
        self.xattrs(node)
        if node.type == stat.S_IFLNK:
            self.target(node)
        elif node.type == stat.S_IFREG:
            for _ in self.data(node):
                pass

    def lookup(self, path: bytes, *, follow: bool = False) -> Node:
        """Return the inode at `path`; with `follow`, symbolic links are followed inside the disk. BadInput: there is none."""
        trail = [self.root]
        waiting = path.split(b"/")[::-1]
        steps = looked_at = 0
        while waiting:
            name = waiting.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            if trail[-1].type != stat.S_IFDIR:
                raise BadInput(f"{printable(path)}: a part of it is not a directory")
            number = None
            for other, its_number, _ in self.entries(trail[-1]):
                looked_at += 1
                if other == name:
                    number = its_number
                    break
            if looked_at > NAMES_MAX_COUNT:
                raise BadInput(
                    f"{printable(path)}: more than {NAMES_MAX_COUNT} names on its way", "was the disk made to do harm?"
                )
            if number is None:
                raise BadInput(f"{printable(path)}: no such file on the disk")
            node = self.node(number)
            if node.type == stat.S_IFLNK and (follow or waiting):
                steps += 1
                if steps > LINKS_MAX:
                    raise BadInput(f"{printable(path)}: more than {LINKS_MAX} symbolic links")
                target = self.target(node)
                if target.startswith(b"/"):
                    trail = [self.root]
                waiting += target.split(b"/")[::-1]
            else:
                trail.append(node)
        return trail[-1]

    def walk(self, path: bytes = b"/", *, wants: Wants | None = None) -> Iterator[tuple[bytes, Node]]:
        """Yield every name below `path` and its inode, parents first, names in bytewise order; `path` itself first.

        Names that `wants` refuses are left out, and their inodes are not read. It is not asked about directories.
        BadInput: a directory is found twice, so the disk goes in circles.
        """
        top = self.lookup(path)
        prefix = b"/" + path.strip(b"/")
        yield prefix, top
        if top.type != stat.S_IFDIR:
            return
        seen = {top.number}
        above = prefix.rstrip(b"/") + b"/"
        waiting = [(above, *entry) for entry in self._sorted(top)]  # whole paths would take far more
        count = 0
        while waiting:
            above, name, number, kind = waiting.pop()
            if wants is not None and kind not in (f.FT_UNKNOWN, f.FT_DIR) and not wants(name, number, kind):
                count += 1
                continue
            place = above + name
            node = self.node(number)
            yield place, node
            count += 1
            if node.type == stat.S_IFDIR:
                if number in seen or len(place) > LONG_PATH_MAX:
                    raise damaged(f"directory {number}", "place: it is in two, or too deep")
                seen.add(number)
                place += b"/"
                waiting += [(place, *entry) for entry in self._sorted(node)]
            if count + len(waiting) > NAMES_MAX_COUNT:
                raise BadInput(f"more than {NAMES_MAX_COUNT} names on the disk", "was it made to do harm?")

    def _sorted(self, node: Node) -> list[tuple[bytes, int, int]]:
        """A directory's entries, last first; bounded, because many directories may claim the same blocks."""
        found = list(islice(self.entries(node), NAMES_MAX_COUNT + 1))
        found.sort(reverse=True)
        return found


def _zeros(count: int) -> Iterator[bytes]:
    piece = bytes(1 << 20)
    while count > 0:
        yield piece[:count]
        count -= len(piece)
