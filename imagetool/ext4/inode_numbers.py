"""Inode numbers and link counts of a tree.

Numbers go layer by layer, base first, a layer's files before its other inodes; files that a later layer hides keep
theirs unused. So a new top layer leaves every number, and nearly every table block, of the layers below as it was.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from imagetool.tree.model import Directory, File, Inode, Special, Symlink, Tree
from rootdisk.errors import BadInput
from rootdisk.ext4.format import EXT4_GOOD_OLD_FIRST_INO, EXT4_LINK_MAX, EXT4_ROOT_INO, TIME_MAX, TIME_MIN
from rootdisk.limits import LONG_PATH_MAX
from rootdisk.text import printable

_FIRST_NS, _AFTER_NS = TIME_MIN * 1_000_000_000, (TIME_MAX + 1) * 1_000_000_000


@dataclass(slots=True)
class Numbers:
    """The numbering of a tree; each inode has its own number and number of names (`number`, `links`).

    `by_number[n]` is inode n or None, `firsts` has each layer's first number. `directories` are as they were met, the
    root first, and `above` is for each the place of its parent in that list.
    """

    by_number: list[Inode | None] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    directories: list[Directory] = field(default_factory=list)
    above: array[int] = field(default_factory=lambda: array("I"))

    def parents(self) -> array[int]:
        """Return for each inode number that of its parent; 0 if it is not a directory's."""
        parents = array("I", bytes(4 * len(self.by_number)))
        for directory, place in zip(self.directories, self.above, strict=True):
            parents[directory.number] = self.directories[place].number
        return parents

    def path(self, place: int) -> bytes:
        """Return the path of directory `place`, with a slash at its end: for messages, and slow."""
        names: list[bytes] = []
        while place:
            directory, place = self.directories[place], self.above[place]
            children = self.directories[place].children
            names.append(next(name for name, inode in children.items() if inode is directory))
        return b"/" + b"".join(name + b"/" for name in reversed(names))

    def path_of(self, wanted: Inode) -> str:
        """Return a path of any inode, as text: for messages, and slow."""
        for place, directory in enumerate(self.directories):
            if directory is wanted:
                return printable(self.path(place))
            for name, inode in directory.children.items():
                if inode is wanted and not isinstance(inode, Directory):
                    return printable(self.path(place) + name)
        return "?"


def subdirectories(directory: Directory) -> int:
    """Count the directories in a directory."""
    return sum(isinstance(child, Directory) for child in directory.children.values())


def assign(tree: Tree) -> Numbers:
    """Number all inodes of `tree`.

    BadInput names the file that has too many names, too long a path, or a time that ext4 cannot hold.
    """
    _forget_links(tree)
    numbers = Numbers()
    others: list[list[Inode]] = [[] for _ in tree.layers] or [[]]
    files = _count_links(tree, numbers, others)
    by_number = numbers.by_number
    by_number += [None] * EXT4_GOOD_OLD_FIRST_INO
    by_number[EXT4_ROOT_INO] = tree.root
    tree.root.number = EXT4_ROOT_INO
    for lower, rest in zip(tree.layers, others, strict=False):
        numbers.firsts.append(len(by_number))
        for file in lower.files:
            file.number = len(by_number)
            by_number.append(file if file.links else None)
            if file.links:
                files -= 1
                if not _FIRST_NS <= file.mtime_ns < _AFTER_NS:
                    _check_time(numbers, file)
        for inode in rest:
            inode.number = len(by_number)
            by_number.append(inode)
            if not _FIRST_NS <= inode.mtime_ns < _AFTER_NS:
                _check_time(numbers, inode)
    assert not files, "a file that is in no layer's list"
    return numbers


def _forget_links(tree: Tree) -> None:
    """Reset all link counts, as a tree may be planned more than once."""
    for layer in tree.layers:
        for file in layer.files:
            file.links = 0
    waiting = [tree.root]
    while waiting:
        for child in waiting.pop().children.values():
            if isinstance(child, Directory):
                waiting.append(child)
            else:
                child.links = 0


def _count_links(tree: Tree, numbers: Numbers, others: list[list[Inode]]) -> int:
    """Find all directories and count all names; `others` are the inodes of each layer that are not files.

    Returns how many files there are.
    """
    files = 0
    numbers.directories.append(tree.root)
    numbers.above.append(0)
    _check_time(numbers, tree.root)
    waiting = [(0, 1)]  # place of a directory, length of its path
    while waiting:
        place, length = waiting.pop()
        children = numbers.directories[place].children
        below = []
        for name in sorted(children):
            inode = children[name]
            if isinstance(inode, Directory):
                others[inode.layer].append(inode)
                below.append((len(numbers.directories), length + len(name) + 1))
                numbers.directories.append(inode)
                numbers.above.append(place)
                continue
            inode.links += 1
            if inode.links > EXT4_LINK_MAX:
                path = printable(numbers.path(place) + name)
                raise BadInput(f"{path}: more than {EXT4_LINK_MAX} hard links", "ext4 can hold no more")
            if inode.links > 1:
                continue
            if isinstance(inode, File):
                files += 1
            else:
                layer = inode.layer if isinstance(inode, Symlink | Special) else len(others) - 1
                others[layer].append(inode)
        for child, size in below:
            _check_time(numbers, numbers.directories[child])
            if size > LONG_PATH_MAX:
                path = printable(numbers.path(child))
                raise BadInput(f"{path}: a path of {size} bytes", f"at most {LONG_PATH_MAX}: it goes through links")
        waiting.extend(reversed(below))
    return files


def _check_time(numbers: Numbers, inode: Inode) -> None:
    if not _FIRST_NS <= inode.mtime_ns < _AFTER_NS:
        seconds = inode.mtime_ns // 1_000_000_000
        raise BadInput(f"{numbers.path_of(inode)}: the time {seconds} s, which ext4 cannot hold")
