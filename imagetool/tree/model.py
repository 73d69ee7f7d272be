"""The merged file tree of an image, in memory: inodes, names, and where each file's bytes lie in the layer tars.

A tree is made by imagetool/tree/merge.py from layers, changed by imagetool/layout/ and written by imagetool/ext4/. Names
and link targets are bytes: ext4 knows no encoding. A hard link is the same Inode object under several names.
Nodes are slotted and mutable, because a tree has hundreds of thousands and is built in place; after the layout's
additions nobody changes it.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

LINK_STEPS_MAX = 255  # as containerd's and umoci's path resolution


class Source(Protocol):
    """A source of the bytes of a layer. Threads may share it."""

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill all of `buffers`, one after the other, from byte `offset`. OSError or DigestMismatch if the source ends early."""


class Inode:
    """The fields of an inode. `mode` is the complete st_mode with type bits; xattr names are full names.

    `number` and `links` are the writer's: imagetool/ext4/inode_numbers.py sets them when it plans a disk of the tree. In
    dicts beside the tree they would take five times the memory.
    """

    __slots__ = ("gid", "links", "mode", "mtime_ns", "number", "uid", "xattrs")

    links: int
    number: int

    def __init__(
        self, mode: int, uid: int = 0, gid: int = 0, mtime_ns: int = 0, xattrs: Mapping[bytes, bytes] | None = None
    ):
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs  # None means none, to save a dict for nearly every inode; never changed in place


class Directory(Inode):
    """A directory with its children."""

    __slots__ = ("children", "layer")

    def __init__(
        self,
        mode: int = stat.S_IFDIR | 0o755,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        xattrs: Mapping[bytes, bytes] | None = None,
        layer: int = 0,
    ):
        super().__init__(mode, uid, gid, mtime_ns, xattrs)
        self.children: dict[bytes, Inode] = {}
        self.layer = layer  # the first layer that has it: decides the inode's place, so it survives a new top layer


class File(Inode):
    """A regular file. Its bytes are `size` bytes at `offset` of layer number `layer`, or `segments` of it."""

    __slots__ = ("layer", "offset", "segments", "size")

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        xattrs: Mapping[bytes, bytes] | None = None,
        *,
        layer: int,
        size: int,
        offset: int,
        segments: tuple[tuple[int, int, int], ...] | None = None,
    ):
        self.mode = mode  # not by super(): that is a third of merging's time
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs
        self.layer = layer
        self.size = size
        self.offset = offset
        # Sparse file: (offset in the file, offset in the layer's tar, length), ascending, holes between. Else None.
        self.segments = segments


class Symlink(Inode):
    """A symbolic link."""

    __slots__ = ("layer", "target")

    def __init__(
        self,
        target: bytes,
        mode: int = stat.S_IFLNK | 0o777,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        xattrs: Mapping[bytes, bytes] | None = None,
        layer: int = 0,
    ):
        super().__init__(mode, uid, gid, mtime_ns, xattrs)
        self.target = target
        self.layer = layer


class Special(Inode):
    """A character or block device (with its numbers) or a FIFO; the type is in `mode`."""

    __slots__ = ("layer", "major", "minor")

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        xattrs: Mapping[bytes, bytes] | None = None,
        *,
        major: int = 0,
        minor: int = 0,
        layer: int = 0,
    ):
        super().__init__(mode, uid, gid, mtime_ns, xattrs)
        self.major = major
        self.minor = minor
        self.layer = layer


class Slot(Inode):
    """A reserved file: one initialised extent, 64 KiB aligned, of zero bytes (a hole in the raw file), immutable flag set.

    `size` is a multiple of 64 KiB. The runner overwrites its bytes in a copy without reading ext4.
    """

    __slots__ = ("name", "size")

    def __init__(self, name: str, size: int, mode: int = stat.S_IFREG | 0o600):
        super().__init__(mode)
        self.name = name
        self.size = size


@dataclass(slots=True)
class Layer:
    """A layer for the writer: its name and all its regular files with data, even if later layers hide them.

    `files` is in path order (bytewise), each file once; placement follows it and nothing else, so it never depends on
    what other layers hide. `diff_id` is the layer's identity: equal diff IDs have equal bytes at equal offsets.
    `names` are the paths of all that a layer adds which comes from no tar, and `changed` the inodes of others whose owner
    it has changed or one of whose names it has taken.
    """

    diff_id: str
    files: list[File] = field(default_factory=list)
    names: tuple[bytes, ...] = ()
    changed: list[Inode] = field(default_factory=list)
    # The crc32 of each file's path: decides where a bucket of small files ends. Empty: all 0.
    cuts: array[int] = field(default_factory=lambda: array("I"))


@dataclass(slots=True)
class Tree:
    """A root directory and the layers its files' bytes come from; File.layer counts in `layers`."""

    root: Directory = field(default_factory=Directory)
    layers: list[Layer] = field(default_factory=list)
    # Inodes that an ext4 disk may not hold as they are (attributes, an odd time), by the name of the layer that says so.
    noted: dict[str, list[Inode]] = field(default_factory=dict)

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every name and its inode, parents before children, names in bytewise order; the root is b"/"."""
        yield b"/", self.root
        stack: list[tuple[bytes, Iterator[tuple[bytes, Inode]]]] = [
            (b"/", iter(sorted(self.root.children.items(), key=_name)))
        ]
        while stack:
            prefix, names = stack[-1]
            for name, inode in names:
                path = prefix + name
                yield path, inode
                if isinstance(inode, Directory):
                    stack.append((path + b"/", iter(sorted(inode.children.items(), key=_name))))
                    break
            else:
                stack.pop()

    def lookup(self, path: bytes) -> Inode | None:
        """The inode at `path` (no symbolic links followed), or None."""
        node: Inode = self.root
        for name in path.split(b"/"):
            if name:
                if not isinstance(node, Directory) or name not in node.children:
                    return None
                node = node.children[name]
        return node

    def resolve(self, path: bytes) -> Inode | None:
        """The inode at `path` inside the tree, symbolic links followed in it, or None."""
        parts = path.split(b"/")[::-1]
        trail: list[Directory] = [self.root]
        steps = 0
        while parts:
            name = parts.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            child = trail[-1].children.get(name)
            if isinstance(child, Symlink):
                steps += 1
                if steps > LINK_STEPS_MAX:
                    return None
                if child.target.startswith(b"/"):
                    trail = [self.root]
                parts.extend(child.target.split(b"/")[::-1])
            elif isinstance(child, Directory):
                trail.append(child)
            else:
                return child if not any(p not in (b"", b".") for p in parts) else None
        return trail[-1]


def _name(item: tuple[bytes, Inode]) -> bytes:
    return item[0]


class BytesSource(NamedTuple):
    """Bytes in memory as a Source: the layout's additions."""

    data: bytes

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """See `Source`."""
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)


Sources = Sequence[Source]
