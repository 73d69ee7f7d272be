"""Layers -> tree: what a container runtime's disk looks like after unpacking all layers, without unpacking any.

    merge([(diff_id, index), …]) -> Tree       base layer first

Follows image-spec layer.md, "Applying Changesets", and where it is silent containerd's and umoci's extraction:
- an entry replaces what has its name, with all below; a directory over a directory changes the metadata only;
- `.wh.NAME` hides NAME, `.wh..wh..opq` everything in its directory, of lower layers only: what this layer has put
  there stays, whichever comes first (umoci; containerd hides it). If the directory is a link, `.wh..wh..opq` hides nothing;
- other `.wh..wh.` names belong to AUFS and are not files, but hard links to them are made;
- parents are resolved through symbolic links inside the root; missing ones are made, root:root 0755, time 0;
- a hard link is looked up when it is met; its header's metadata is applied to the file (containerd, Docker; umoci
  leaves it), but no mode to a symbolic link;
- a directory's time is its own entry's, whatever is put into it later.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from zlib import crc32

from imagetool.tree.index import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, LINK, SYMLINK, Entry, TarIndex
from imagetool.tree.model import LINK_STEPS_MAX, Directory, File, Inode, Layer, Special, Symlink, Tree
from rootdisk.errors import BadInput
from rootdisk.ext4.format import TIME_MAX, TIME_MIN
from rootdisk.limits import NAME_MAX
from rootdisk.text import printable

# Over all layers. A few kilobytes of tar can name both by the million, through deep paths and chains of links.
IMPLIED_MAX_COUNT = 1 << 18
WALK_STEPS_MAX = 1 << 25
EXTRAS_MAX_COUNT = 1 << 21  # xattrs and pieces of sparse files, some 150 bytes of memory each
FIRST_NS, AFTER_NS = TIME_MIN * 1_000_000_000, (TIME_MAX + 1) * 1_000_000_000  # of the times that ext4 holds
OPAQUE = b".wh..wh..opq"
Place = tuple[Directory, bytes]  # a name in a directory
_DEVICES = {CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK, FIFO: stat.S_IFIFO}


def merge(layers: Iterable[tuple[str, TarIndex]]) -> Tree:
    """The tree of `layers`, each its diff ID and index, base first. They are read one after the other, once.

    Layer.files has every regular file of the layer, empty ones too, whatever hides it, in bytewise order of the path
    in the tar. A file that a later entry of its own layer replaces is left out, unless a hard link has kept it. An entry
    of the same path that a moved link has led to another place replaces nothing.
    BadInput names the layer and the entry that cannot be applied.
    """
    tree = Tree()
    spent = _Spent()
    for diff_id, index in layers:
        _put_on(tree, diff_id, index, spent)
    return tree


def put_on(tree: Tree, diff_id: str, index: TarIndex) -> None:
    """A layer that is merged over a tree."""
    _put_on(tree, diff_id, index, _Spent())


def _put_on(tree: Tree, diff_id: str, index: TarIndex, spent: _Spent) -> None:
    files, cuts = _Applier(tree, len(tree.layers), index, spent).apply()
    tree.layers.append(Layer(diff_id, files, cuts=cuts))


RUNTIMES_REFUSE = "container runtimes refuse it too"
TOO_MUCH = "is the image made to do harm?"


class _Wrong(Exception):
    """An entry cannot be applied: the reason, and a hint for the user."""

    def __init__(self, why: str, hint: str = RUNTIMES_REFUSE) -> None:
        super().__init__(why)
        self.hint = hint


@dataclass(slots=True)
class _Spent:
    """The cost of the image in addition to its entries.

    Counts directories that no entry describes, steps from name to name, xattrs and pieces of sparse files.
    """

    implied: int = 0
    steps: int = 0
    extras: int = 0


class _Applier:
    """Puts one layer's entries into the tree."""

    def __init__(self, tree: Tree, number: int, index: TarIndex, spent: _Spent) -> None:
        self.root = root = tree.root
        self.noted = tree.noted.setdefault(index.name, [])
        self.number = number
        self.index = index
        self.spent = spent
        # Directories by path as it stands in the tar; emptied whenever a directory or link is replaced or removed.
        self.found: dict[bytes, Directory] = {b"": root}
        # Of every directory that was walked through: the one it is in, and its name there. Never the whole path as
        # text, which links make much longer than the entry that names it.
        self.above: dict[Directory, Place] = {}
        # Where this layer has put something, and the parents: its own whiteouts spare them. None if it has no whiteouts.
        self.own: set[Place] | None = set() if index.whiteouts else None
        # Every directory that a path has led to, the last one last: there are several if a link on it has moved.
        self.led_to: dict[bytes, list[Directory]] = {b"": [root]}
        self.files: dict[bytes, File] = {}  # this layer's, by path as it stands in the tar
        self.modes: dict[int, int] = {}  # one object in memory for each mode, however many files have it
        self.kept: list[tuple[bytes, File]] = []  # files whose path another entry has taken, but which still exist
        self.linked: set[int] = set()  # id() of files, all alive, with a hard link of this layer
        self.aufs: dict[bytes, File] = {}  # files that have their names by hard links only, as AUFS keeps them

    def apply(self) -> tuple[list[File], array[int]]:
        """Put all entries into the tree. Returns the layer's files in path order, and the crc32 of their paths."""
        for entry in self.index:
            try:
                self.entry(entry)
            except _Wrong as err:
                raise BadInput(f"layer {self.index.name}: entry {_text(entry[7])}: {err}", err.hint) from None
        if not self.kept:
            paths = sorted(self.files)  # no pairs: they take half of what the files do
            return [self.files[path] for path in paths], array("I", map(crc32, paths))
        files = sorted([*self.files.items(), *self.kept], key=_path)
        return [file for _, file in files], array("I", [crc32(path) for path, _ in files])

    def entry(self, entry: Entry) -> None:
        """Apply an entry of the layer to the tree."""
        kind, mode, uid, gid, mtime_ns, first, second, path, target, xattrs, segments = entry
        if xattrs or segments:
            self.spent.extras += len(xattrs or ()) + len(segments or ())
            if self.spent.extras > EXTRAS_MAX_COUNT:
                raise _Wrong(f"the image has more than {EXTRAS_MAX_COUNT} xattrs and pieces of sparse files", TOO_MUCH)
        parent_path, _, name = path.rpartition(b"/")
        if self.own is not None and (path.startswith(b".wh.") or b"/.wh." in path):
            if name == OPAQUE:
                return self.hide(parent_path, None)
            if any(part.startswith(b".wh..wh.") for part in path.split(b"/")):
                if kind == FILE:
                    self.aufs[path] = self.file(entry)
                return None
            if name.startswith(b".wh."):
                return self.hide(parent_path, name[4:])
        if not path:
            if kind != DIRECTORY:
                raise _Wrong("the root is not a directory", "make the layer again")
            _describe(self.root, mode, uid, gid, mtime_ns, xattrs)
            if xattrs or not FIRST_NS <= mtime_ns < AFTER_NS:
                self.noted.append(self.root)
            return None
        directory = self.found.get(parent_path) or self.parent(parent_path)
        children = directory.children
        old = children.get(name)
        new: Inode
        files = self.files
        if path in files:
            before = files.pop(path)
            # Replaced, unless a hard link has kept it, or a link on the path has moved and leads elsewhere now.
            if id(before) in self.linked or (before is not old and self.is_there(before, parent_path, name)):
                self.kept.append((path, before))
        if kind == FILE:
            new = files[path] = self.file(entry)
        elif kind == DIRECTORY:
            if isinstance(old, Directory):
                _describe(old, mode, uid, gid, mtime_ns, xattrs)
                new = old
            else:
                new = Directory(stat.S_IFDIR | mode, uid, gid, mtime_ns, xattrs, self.number)
        elif kind == SYMLINK:
            layer = old.layer if isinstance(old, Symlink) else self.number
            new = Symlink(target, stat.S_IFLNK | 0o777, uid, gid, mtime_ns, xattrs, layer)
        elif kind == LINK:
            new = self.target(target, (directory, name))
            if not isinstance(new, Symlink):
                new.mode = stat.S_IFMT(new.mode) | mode
            new.uid, new.gid, new.mtime_ns = uid, gid, mtime_ns
            if xattrs:
                new.xattrs = {**(new.xattrs or {}), **xattrs}
        else:
            type_ = _DEVICES[kind]
            layer = old.layer if isinstance(old, Special) and stat.S_IFMT(old.mode) == type_ else self.number
            new = Special(type_ | mode, uid, gid, mtime_ns, xattrs, major=first, minor=second, layer=layer)
        if xattrs or not FIRST_NS <= mtime_ns < AFTER_NS:
            self.noted.append(new)
        if old is not None and old is not new and isinstance(old, (Directory, Symlink)):
            self.forget()
        children[name] = new
        if self.own is not None:
            self.own_place((directory, name))
        return None

    def file(self, entry: Entry) -> File:
        """Return a regular file whose data stays in the layer."""
        _, mode, uid, gid, mtime_ns, offset, size, _, _, xattrs, segments = entry
        return File(
            self.modes.get(mode) or self.modes.setdefault(mode, stat.S_IFREG | mode),
            uid,
            gid,
            mtime_ns,
            xattrs,
            layer=self.number,
            size=size,
            offset=offset,
            segments=segments,
        )

    def is_there(self, file: File, parent_path: bytes, name: bytes) -> bool:
        """Return whether `file` is still called `name` in a directory `parent_path` has led to, which is in the tree."""
        places = self.led_to[parent_path]
        self.spend(len(places))
        directory = next((place for place in places if place.children.get(name) is file), None)
        if directory is None:
            return False
        inode: Inode = file
        while directory.children.get(name) is inode:
            if directory is self.root:
                return True
            self.spend(1)
            inode = directory
            directory, name = self.above[directory]
        return False

    def target(self, target: bytes, own: Place) -> Inode:
        """Return the target of the hard link `own`; a symbolic link in the last component of `target` is not followed."""
        if target in self.aufs:
            file = self.files[target] = self.aufs[target]
            self.linked.add(id(file))
            return file
        parent_path, _, last = target.rpartition(b"/")
        at = self.found.get(parent_path) or self.walk(parent_path, make=False)
        inode = at.children.get(last) if at is not None else None
        if at is None or inode is None:
            raise _Wrong(f"hard link to {_text(target)}, which is not there")
        if isinstance(inode, Directory):
            raise _Wrong(f"hard link to {_text(target)}, which is a directory")
        place: Place | None = (at, last)
        while place is not None:
            self.spend(1)
            if place == own:  # it is removed before the link is made
                raise _Wrong(f"hard link to {_text(target)}, which the link itself replaces")
            place = self.above.get(place[0])
        if isinstance(inode, File):
            self.linked.add(id(inode))
        return inode

    def parent(self, path: bytes) -> Directory:
        """Return the directory at `path`; directories that are missing are made."""
        found = self.walk(path, make=True)
        assert found is not None  # walk makes what is missing
        self.found[path] = found
        places = self.led_to.setdefault(path, [])
        if found not in places[-1:]:
            places.append(found)
        return found

    def walk(self, path: bytes, *, make: bool) -> Directory | None:
        """Return the directory at `path`; links are followed inside the root.

        Missing directories are made with `make`; else None, and None if a component of the path is not a directory.
        """
        way = [self.root]  # from the root to here
        names = path.split(b"/")[::-1]
        self.spend(len(names))
        steps = 0
        while names:
            name = names.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(way) > 1:
                    way.pop()
                continue
            here = way[-1]
            child = here.children.get(name)
            if child is None:
                if not make:
                    return None
                if len(name) > NAME_MAX:
                    raise _Wrong(f"its parent leads to a name of {len(name)} bytes")
                self.spent.implied += 1
                if self.spent.implied > IMPLIED_MAX_COUNT:
                    raise _Wrong(f"more than {IMPLIED_MAX_COUNT} directories that no entry describes", TOO_MUCH)
                child = here.children[name] = Directory(layer=self.number)
            if isinstance(child, Directory):
                self.above[child] = (here, name)
                way.append(child)
            elif isinstance(child, Symlink):
                steps += 1
                if steps > LINK_STEPS_MAX:
                    raise _Wrong(f"more than {LINK_STEPS_MAX} symbolic links on its path: {_text(path)}")
                if child.target.startswith(b"/"):
                    del way[1:]
                names += child.target.split(b"/")[::-1]
                self.spend(len(names))
            elif make:
                raise _Wrong(f"its parent {_text(name)} is not a directory")
            else:
                return None
        return way[-1]

    def spend(self, steps: int) -> None:
        """Count steps through directories, and refuse an image that takes too many."""
        self.spent.steps += steps
        if self.spent.steps > WALK_STEPS_MAX:
            raise _Wrong(f"the image takes more than {WALK_STEPS_MAX} steps through its directories", TOO_MUCH)

    def own_place(self, place: Place | None) -> None:
        """Note that this layer has put something there, and with it the directories above."""
        assert self.own is not None
        while place is not None and place not in self.own:  # parents of what is in it are in it
            self.own.add(place)
            place = self.above.get(place[0])

    def hide(self, parent_path: bytes, name: bytes | None) -> None:
        """Remove `name`, or all, from the directory at `parent_path`, except what this layer itself has put there."""
        if name in (b"", b".", b".."):
            raise _Wrong("a whiteout that names nothing", "make the layer again")
        parent = self.walk(parent_path, make=False)
        if parent is None or (name is None and self.is_link(parent_path)):
            return
        assert self.own is not None
        stack = [(parent, [name] if name is not None else list(parent.children))]
        while stack:
            directory, names = stack.pop()
            self.spend(len(names))
            for child_name in names:
                child = directory.children.get(child_name)
                if child is None:
                    continue
                if (directory, child_name) not in self.own:
                    del directory.children[child_name]
                    if isinstance(child, (Directory, Symlink)):
                        self.forget()
                elif isinstance(child, Directory):
                    stack.append((child, list(child.children)))

    def is_link(self, path: bytes) -> bool:
        """Return whether `path` is a symbolic link."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self.walk(parent_path, make=False)
        return parent is not None and isinstance(parent.children.get(name), Symlink)

    def forget(self) -> None:
        """Drop the directories that were found by path: a link has changed."""
        self.found.clear()
        self.found[b""] = self.root


def _describe(
    directory: Directory, mode: int, uid: int, gid: int, mtime_ns: int, xattrs: Mapping[bytes, bytes] | None
) -> None:
    directory.mode = stat.S_IFDIR | mode
    directory.uid, directory.gid, directory.mtime_ns, directory.xattrs = uid, gid, mtime_ns, xattrs


def _path(item: tuple[bytes, File]) -> bytes:
    return item[0]


def _text(path: bytes) -> str:
    return f"'{printable(path)}'"
