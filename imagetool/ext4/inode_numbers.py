"""Inode numbers and link counts of a tree.

Numbers go layer by layer, base first, a layer's files before its other inodes; files that a later layer hides keep
theirs unused. So a new top layer leaves every number, and nearly every table block, of the layers below as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from imagetool.tree.model import Directory, File, Inode, Special, Symlink, Tree
from rootdisk.errors import BadInput
from rootdisk.ext4.format import EXT4_GOOD_OLD_FIRST_INO, EXT4_LINK_MAX, EXT4_ROOT_INO, TIME_MAX, TIME_MIN
from rootdisk.text import printable

PATH_MAX_BYTES = 64 << 10  # sixteen times what the kernel takes at once
_FIRST_NS, _AFTER_NS = TIME_MIN * 1_000_000_000, (TIME_MAX + 1) * 1_000_000_000


@dataclass(slots=True)
class Numbers:
    """`by_number[n]` is inode n or None; `links` counts names of what is no directory, `parents` gives a directory's,
    `firsts` each layer's first number."""

    number: dict[Inode, int] = field(default_factory=dict)
    by_number: list[Inode | None] = field(default_factory=list)
    links: dict[Inode, int] = field(default_factory=dict)
    parents: dict[Directory, Directory] = field(default_factory=dict)
    firsts: list[int] = field(default_factory=list)

    def subdirectories(self, directory: Directory) -> int:
        return sum(isinstance(child, Directory) for child in directory.children.values())


def assign(tree: Tree) -> Numbers:
    """Numbers for all inodes of `tree`. BadInput names the file that has too many names or a time ext4 cannot hold."""
    found = Numbers()
    others: list[list[Inode]] = [[] for _ in tree.layers] or [[]]
    found.parents[tree.root] = tree.root
    _check_time(found, tree.root)
    waiting = [(tree.root, 1)]
    while waiting:
        directory, length = waiting.pop()
        below = []
        for name in sorted(directory.children):
            inode = directory.children[name]
            if isinstance(inode, Directory):
                found.parents[inode] = directory
                others[inode.layer].append(inode)
                below.append((inode, length + len(name) + 1))
                continue
            count = found.links[inode] = found.links.get(inode, 0) + 1
            if count > EXT4_LINK_MAX:
                path = path_of(found, directory) + name
                raise BadInput(f"{_text(path)}: more than {EXT4_LINK_MAX} hard links", "ext4 can hold no more")
            if count == 1 and not isinstance(inode, File):
                layer = inode.layer if isinstance(inode, Symlink | Special) else len(others) - 1
                others[layer].append(inode)
        for child, size in below:
            _check_time(found, child)
            if size > PATH_MAX_BYTES:
                path = path_of(found, child)
                raise BadInput(
                    f"{_text(path)}: a path of {size} bytes", f"at most {PATH_MAX_BYTES}: it goes through links"
                )
        waiting.extend(reversed(below))
    found.by_number = [None] * EXT4_GOOD_OLD_FIRST_INO
    found.by_number[EXT4_ROOT_INO] = tree.root
    found.number[tree.root] = EXT4_ROOT_INO
    number, by_number, links = found.number, found.by_number, found.links
    for lower, rest in zip(tree.layers, others, strict=False):
        found.firsts.append(len(found.by_number))
        for inode in (*lower.files, *rest):
            number[inode] = len(by_number)
            seen = inode in links or not isinstance(inode, File)
            by_number.append(inode if seen else None)
            if seen and not _FIRST_NS <= inode.mtime_ns < _AFTER_NS:
                _check_time(found, inode)
    missing = [inode for inode in found.links if inode not in found.number]
    assert not missing, "a file that is in no layer's list"
    return found


def _check_time(numbers: Numbers, inode: Inode) -> None:
    if not _FIRST_NS <= inode.mtime_ns < _AFTER_NS:
        seconds = inode.mtime_ns // 1_000_000_000
        raise BadInput(f"{path_of_inode(numbers, inode)}: the time {seconds} s, which ext4 cannot hold")


def path_of(numbers: Numbers, directory: Directory) -> bytes:
    """The directory's path with a slash at its end: for messages, and slow."""
    names: list[bytes] = []
    while (parent := numbers.parents[directory]) is not directory:
        names.append(next(name for name, inode in parent.children.items() if inode is directory))
        directory = parent
    return b"/" + b"".join(name + b"/" for name in reversed(names))


def path_of_inode(numbers: Numbers, wanted: Inode) -> str:
    """A path of any inode, as text: for messages, and slow."""
    for directory in numbers.parents:
        if directory is wanted:
            return _text(path_of(numbers, directory))
        for name, inode in directory.children.items():
            if inode is wanted and not isinstance(inode, Directory):
                return _text(path_of(numbers, directory) + name)
    return "?"


def _text(path: bytes) -> str:
    return printable(path)
