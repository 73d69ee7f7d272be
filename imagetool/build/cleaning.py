"""Empty a cache: what builds keep to be quicker the next time. All of it is made again when it is needed.

Only what has a name of ours goes. Published layouts and other files in the directory stay.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# What a user's cache and a project's have in common: packed disks, kernels, indexes of layers, the guest's init, rests of builds.
SHARED = ("disks", "kernels", "indexes", "guest", "tmp")


class Entry(NamedTuple):
    """A file or directory of a cache. `size` is what removing it frees, bytes."""

    path: Path
    size: int


def entries(folder: Path, patterns: Sequence[str]) -> list[Entry]:
    """Return the paths in `folder` that match one of the patterns, sorted, with their sizes.

    A file with several names counts once, and not at all if one of them is elsewhere, as in a published layout.
    """
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    files = {path: list(_files(path)) for path in paths}
    names = Counter(_identity(info) for infos in files.values() for info in infos)
    seen: set[tuple[int, int]] = set()
    found = []
    for path, infos in files.items():
        size = 0
        for info in infos:
            identity = _identity(info)
            if identity not in seen and (stat.S_ISDIR(info.st_mode) or names[identity] == info.st_nlink):
                size += info.st_blocks * 512
            seen.add(identity)
        found.append(Entry(path, size))
    return found


def remove(entry: Entry) -> None:
    """Remove an entry; a link is removed, not what it leads to.

    Raises:
        OSError: It cannot be removed.
    """
    if stat.S_ISDIR(entry.path.lstat().st_mode):
        shutil.rmtree(entry.path)
    else:
        entry.path.unlink()


def _files(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of `path` and of everything below it; what is gone in the meantime is left out."""
    paths: Iterable[Path] = [path]
    if path.is_dir() and not path.is_symlink():
        below = (Path(folder, name) for folder, folders, files in os.walk(path) for name in (*folders, *files))
        paths = itertools.chain(paths, below)
    for one in paths:
        with contextlib.suppress(FileNotFoundError):
            yield one.lstat()


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino
