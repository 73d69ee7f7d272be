"""Locks between processes: flock(2) on small files, which the kernel drops with the process, however it ends.

A lock's file says who has it exclusively and what for, to those who wait. Every wait is told after a second, and ends:
when nothing has moved for `WAIT_S` it is Busy. Who has a lock exclusively may remove its file; so whoever locks an
open file looks whether that is still the one with the name, and opens again if it is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rootdisk.durable import open_file
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
    """Lock the file `path`, made if it is missing; return the descriptor that holds the lock until it is closed everywhere.

    Waits `timeout_s` seconds (default WAIT_S; 0: not at all) from when `moves` last gave another value, then raises Busy.
    `what` is what others are waited for, `doing` what they read while they wait for us.
    """
    start = since = time.monotonic()
    limit = WAIT_S if timeout_s is None else timeout_s
    moved = moves() if moves is not None else None
    told = False
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_named(fd, path):
                if not shared:
                    _sign(fd, doing)
                return fd
            os.close(fd)  # removed meanwhile
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
            raise Busy(f"{what or path.name} is in use by {holder}", "try again when it has ended")
        if not told and now - start >= SAY_S:
            told = True
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
    """Hold the lock `path` exclusively, as `take` does; its file is gone afterwards."""
    fd = take(path, timeout_s=timeout_s, what=what, doing=doing, moves=moves)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(fd)


def is_held(path: Path) -> bool:
    """Whether a living process has the lock `path` exclusively; OSError if the file cannot be opened."""
    fd = open_file(path)
    try:
        return is_locked(fd)
    finally:
        os.close(fd)


def is_locked(fd: int) -> bool:
    """Whether a living process has the lock file open at `fd` exclusively, by another descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def remove_idle(path: Path) -> None:
    """Remove the lock's file, if nobody has the lock."""
    with contextlib.suppress(Busy, RootdiskError), held(path, timeout_s=0):
        pass


def _open(path: Path) -> int:
    try:
        return open_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as err:
        raise RootdiskError(f"lock {printable(path)}: {err.strerror}", "remove it, or fix its owner") from err


def _sign(fd: int, doing: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk they are only told less
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {printable(doing, _HOLDER_BYTES // 4)}".strip().encode() + b"\n", 0)


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _holder(fd: int) -> str:
    """Who has the lock open at `fd` exclusively, as far as its file says."""
    pid, _, doing = printable(os.pread(fd, _HOLDER_BYTES, 0).strip(), _HOLDER_BYTES).partition(" ")
    if not pid.isdecimal():
        return "another process"
    return f"process {pid} ({doing})" if doing else f"process {pid}"
