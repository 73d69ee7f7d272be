"""Two disks compared by content, both mounted by the kernel: names, types, modes, owners, sizes, times, link targets, bytes."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path


def differences(ours: Path, theirs: Path) -> int | None:
    """How many paths differ; None where mounting is not allowed."""
    if os.geteuid():
        return None
    with tempfile.TemporaryDirectory() as name:
        roots = [Path(name, "a"), Path(name, "b")]
        mounted: list[Path] = []
        try:
            for disk, root in zip((ours, theirs), roots, strict=True):
                root.mkdir()
                subprocess.run(["mount", "-o", "loop,ro,noload", disk, root], check=True)
                mounted.append(root)
            return _compare(*roots)
        finally:
            for root in mounted:
                subprocess.run(["umount", root], check=True)


def _compare(ours: Path, theirs: Path) -> int:
    first, second = _listing(ours), _listing(theirs)
    count = len(first.keys() ^ second.keys())
    for path in first.keys() & second.keys():
        if first[path] != second[path]:
            count += 1
        elif stat.S_ISREG(first[path][0]):
            count += (ours / path).read_bytes() != (theirs / path).read_bytes()
    return count


def _listing(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for folder, names, files in os.walk(root):
        if folder == str(root):
            names[:] = [name for name in names if name != "lost+found"]
        for name in (*names, *files):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
            size = info.st_size if stat.S_ISREG(info.st_mode) else 0
            found[os.path.relpath(path, root)] = (
                info.st_mode,
                info.st_uid,
                info.st_gid,
                size,
                int(info.st_mtime),
                target,
            )
    return found
