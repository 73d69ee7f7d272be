"""Directories and files for work in progress, beside the result. A directory that a killed process has left is removed by the next such work.

The directory is locked (flock) as long as its process lives, so another process removes only what nobody uses. Its name ends
with 16 hex digits: directories of other programs, and of releases that did not lock theirs, have other names and stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """Make an empty private directory in `parent`, and remove it at the end; `prefix` says what it is for.

    Raises:
        OSError: It cannot be made.
    """
    _remove_dead(parent, prefix)
    folder, lock = None, -1
    try:  # from the start: a signal may end this program at any moment
        while lock < 0:
            folder = parent / f"{prefix}{os.urandom(8).hex()}"
            os.mkdir(folder, 0o700)
            lock = _lock(folder)
        assert folder is not None
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def unnamed_file(folder: Path, mode: int = 0o600) -> int:
    """Open a file without a name in `folder`: it is gone when the process ends, however that happens. `mode`: if it gets one.

    Raises:
        OSError: It cannot be made.
    """
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
    except OSError:  # a file system without O_TMPFILE
        import tempfile

        fd, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
        return fd


def _lock(folder: Path) -> int:
    """Lock a new directory, and return the lock; -1 if another process has taken it for a dead one."""
    with contextlib.suppress(FileNotFoundError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return lock
        os.close(lock)
    return -1


def _remove_dead(parent: Path, prefix: str) -> None:
    try:
        names = os.listdir(parent)
    except OSError:
        return  # a directory that may not be listed may still be written
    for name in names:
        if not re.fullmatch(re.escape(prefix) + "[0-9a-f]{16}", name):
            continue
        with contextlib.suppress(OSError):  # in use, gone, or of another user
            folder = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(folder).st_uid == os.geteuid():
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(parent / name)
            finally:
                os.close(folder)
