"""Trees to copy, and what a copy has become."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def tree(root: Path) -> dict[str, bytes]:
    """Everything below `root`: its kind, and of a file its content."""
    found = {}
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(folder, name)
            kind = stat.S_IFMT(path.lstat().st_mode)
            found[str(path.relative_to(root))] = path.read_bytes() if kind == stat.S_IFREG else b"%o" % kind
    return found


def make_tree(root: Path) -> None:
    (root / "below/deep").mkdir(parents=True)
    (root / "big").write_bytes(os.urandom(3_000_001))
    (root / "empty").touch()
    (root / "below/program").write_text("#!/bin/sh\n")
    (root / "below/program").chmod(0o4755)
    (root / os.fsdecode(b"name\n\xff")).write_text("odd")
    (root / "below/link").symlink_to("../../outside/kept")
    os.mkfifo(root / "fifo", 0o640)
    with (root / "holes").open("wb") as file:
        file.truncate(1 << 40)
        for at in (0, 5 << 30, 1 << 39):
            os.pwrite(file.fileno(), b"data" * 5000, at)
    (root / "hole").touch()
    os.truncate(root / "hole", 1 << 20)
    os.utime(root / "big", ns=(5, 1_234_567_890_123_456_789))
    os.utime(root / "below/link", ns=(5, 1_000_000_007), follow_symlinks=False)
    os.utime(root / "below/deep", ns=(5, -7_000_000_001))
    (root / "below/deep").chmod(0o500)
    os.utime(root / "below", ns=(5, 99))


def described(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(folder, name)
            info = path.lstat()
            what: object = None
            if stat.S_ISLNK(info.st_mode):
                what = path.readlink()
            elif stat.S_ISREG(info.st_mode) and info.st_size < 1 << 30:
                what = path.read_bytes()
            mode = info.st_mode & ~(0o6000 if stat.S_ISREG(info.st_mode) else 0)
            size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
            found[str(path.relative_to(root))] = (mode, size, what, info.st_mtime_ns)
    return found
