"""Two disks compared by content, both mounted by the kernel: names, types, modes, owners, sizes, times, link targets,
device numbers, hard links, extended attributes, bytes."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PART = 1 << 20
LEFT_OUT = ("lost+found",)


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    path: str
    names: tuple[str, ...]
    directory: bool

    @property
    def is_time_of_directory(self) -> bool:
        return self.directory and self.names == ("time",)

    def __str__(self) -> str:
        return f"{self.path}: {', '.join(self.names)}"


def compare(ours: Path, theirs: Path, left_out: Sequence[str] = ()) -> list[Difference]:
    """Each path that differs and how, sorted. `left_out` are names in the root that need not be on both.

    PermissionError where mounting is not allowed.
    """
    if os.geteuid():
        raise PermissionError("only root may mount")
    with _mounted(ours) as a, _mounted(theirs) as b:
        first, second = _listing(a, {*LEFT_OUT, *left_out}), _listing(b, {*LEFT_OUT, *left_out})
        found = [Difference(path, ("only on one",), False) for path in first.keys() ^ second.keys()]
        for path in first.keys() & second.keys():
            one, other = first[path], second[path]
            names = [name for name, value in one.items() if other[name] != value]
            if not names and stat.S_ISREG(one["mode"]) and not _equal(a / path, b / path):
                names = ["bytes"]
            if names:
                found.append(Difference(path, tuple(names), stat.S_ISDIR(one["mode"])))
        return sorted(found)


@contextlib.contextmanager
def _mounted(disk: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["mount", "-t", "ext4", "-o", "loop,ro,noload", disk, name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def _listing(root: Path, left_out: set[str]) -> dict[str, dict[str, Any]]:
    """Return the metadata of each path from the kernel; hard links by the first path of their file."""
    found: dict[str, dict[str, Any]] = {}
    firsts: dict[int, str] = {}
    for folder, names, files in os.walk(root):
        if folder == str(root):
            names[:] = [name for name in names if name not in left_out]
            found["."] = _facts(folder, ".", firsts) | {"time": 0}  # making other things in it may change its time
        names.sort()
        for name in sorted((*names, *files)):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            found[relative] = _facts(path, relative, firsts)
    return found


def _facts(path: str, relative: str, firsts: dict[int, str]) -> dict[str, Any]:
    info = os.lstat(path)
    folder = stat.S_ISDIR(info.st_mode)
    xattrs = os.listxattr(path, follow_symlinks=False)
    return {
        "mode": info.st_mode,
        "owner": (info.st_uid, info.st_gid),
        "size": info.st_size if not folder else 0,
        "time": int(info.st_mtime),
        "target": os.readlink(path) if stat.S_ISLNK(info.st_mode) else "",
        "device": info.st_rdev,
        "links": "" if folder else firsts.setdefault(info.st_ino, relative),
        "attributes": {name: os.getxattr(path, name, follow_symlinks=False) for name in xattrs},
    }


def _equal(one: Path, other: Path) -> bool:
    with one.open("rb") as a, other.open("rb") as b:
        while True:
            first = a.read(PART)
            if first != b.read(PART):
                return False
            if not first:
                return True
