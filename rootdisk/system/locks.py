"""Locks between processes: flock(2) on small files. The kernel releases them when the process ends, even if it is killed.

The lock file contains the process that holds the lock exclusively and its purpose, for processes that wait. A wait is
announced after a second and fails with Busy after `WAIT_S` seconds without progress. The holder of an exclusive lock may
remove the file. So after locking, compare the open file with the name, and open it again if they differ.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rootdisk.durable import is_named, open_file
from rootdisk.errors import Busy, RootdiskError
from rootdisk.text import one_line, printable

WAIT_S = 600.0
SAY_S = 1.0
_POLL_S = 0.05
_HOLDER_BYTES = 200


def take(
    path: Path,
    *,
    shared: bool = False,
    timeout_s: float | None = None,
    what: str = "",
    doing: str = "",
    moves: Callable[[], object] | None = None,
) -> int:
    """Lock the file `path`, which is created if missing. Return a descriptor; closing all its copies releases the lock.

    Args:
        path: The lock file.
        shared: Allow other shared holders.
        timeout_s: Seconds to wait without progress; default WAIT_S, 0 means do not wait.
        what: Name of the locked thing, for messages.
        doing: Purpose of this lock, shown to processes that wait for it.
        moves: Returns a value that changes while the holder makes progress; a change restarts the timeout.

    Raises:
        Busy: The lock was not free in time.
        RootdiskError: The lock file cannot be opened.
    """
    start = since = time.monotonic()
    limit = WAIT_S if timeout_s is None else timeout_s
    moved = moves() if moves is not None else None
    is_announced = False
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if is_named(fd, path):
                if not shared:
                    sign(fd, doing)
                return fd
            os.close(fd)  # the holder has removed the file
            continue
        except BlockingIOError:
            holder = _holder(fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        now = time.monotonic()
        if moves is not None and (latest := moves()) != moved:
            moved, since = latest, now
        if now - since >= limit:
            raise Busy(f"{what or path.name} is in use by {holder}", "try again later")
        if not is_announced and now - start >= SAY_S:
            is_announced = True
            print(one_line(f"waiting for {holder}{f', for {what}' if what else ''}"), file=sys.stderr, flush=True)
        time.sleep(_POLL_S)


@contextlib.contextmanager
def held(
    path: Path,
    *,
    timeout_s: float | None = None,
    what: str = "",
    doing: str = "",
    moves: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Hold the lock `path` exclusively and remove its file at the end. Arguments and errors: see `take`."""
    fd = take(path, timeout_s=timeout_s, what=what, doing=doing, moves=moves)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(fd)


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock `path` exclusively.

    Raises:
        OSError: The lock file cannot be opened.
    """
    fd = open_file(path)
    try:
        return is_locked(fd)
    finally:
        os.close(fd)


def is_locked(fd: int) -> bool:
    """Return whether the lock file open at `fd` is locked exclusively through another descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def remove_idle(path: Path) -> None:
    """Remove the lock file `path` if the lock is free."""
    with contextlib.suppress(Busy, RootdiskError), held(path, timeout_s=0):
        pass


def _open(path: Path) -> int:
    try:
        return open_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as err:
        raise RootdiskError(f"lock {printable(path)}: {err.strerror}", "remove it, or fix its owner") from err


def sign(fd: int, doing: str) -> None:
    """Write into the lock file open at `fd` that this process holds it, and why. After a fork that is another process."""
    with contextlib.suppress(OSError):  # if the disk is full, messages of waiting processes say less
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {printable(doing, _HOLDER_BYTES // 4)}".strip().encode() + b"\n", 0)


def _holder(fd: int) -> str:
    """Describe the exclusive holder of the lock file open at `fd`, from the content of the file."""
    pid, _, doing = printable(os.pread(fd, _HOLDER_BYTES, 0).strip(), _HOLDER_BYTES).partition(" ")
    if not pid.isdecimal():
        return "another process"
    return f"process {pid} ({doing})" if doing else f"process {pid}"
