"""Find out whether a sandbox runs: its keeper holds the lock and listens on the control socket.

The kernel releases the lock when the keeper ends, even if it is killed. If the lock file was deleted, the control socket
tells whether a keeper lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
from pathlib import Path

from rootdisk.durable import open_file, socket_address
from rootdisk.errors import BadInput, Busy, RootdiskError
from rootdisk.system.locks import is_held, is_locked
from rootdisk.text import printable
from runner.sandbox.state import State, Unreadable

_POLL_S = 0.05
_LOCK_POLL_S = 0.02
_RELEASE_S = 2.0  # how long a process that only looks may hold the lock
_MACHINE_S = 20.0  # for the kernel to take back all memory of a killed machine
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, fcntl(2)


def take_lock(state: State | Unreadable) -> int:
    """Lock a stopped sandbox and return the descriptor of its lock. A missing lock file is created again.

    Raises:
        Busy: The sandbox runs.
        OSError: The lock cannot be opened.
    """
    deadline = time.monotonic() + _RELEASE_S
    while True:
        try:
            lock = try_lock(state.folder)
        except FileNotFoundError:
            lock = _recreate_lock(state.folder)
        if lock is not None:
            return lock
        if time.monotonic() > deadline or not state.folder.exists():
            raise Busy(f"sandbox {state.name} runs", f"runner stop {state.name}")
        time.sleep(_LOCK_POLL_S)


def try_lock(folder: Path) -> int | None:
    """Lock the sandbox in `folder` and return the descriptor. Return None if it is locked or was just replaced.

    Raises:
        OSError: The lock cannot be opened.
    """
    fd = open_file(folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(folder / "lock")):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def _recreate_lock(folder: Path) -> int | None:
    """Create a deleted lock file and lock it. Return None if the keeper lives or another process was faster."""
    if answers(folder):
        return None
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.close(open_file(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL))
        return try_lock(folder)
    return None


def answers(folder: Path) -> bool:
    """Return whether a keeper listens on the control socket of the sandbox in `folder`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            with socket_address(folder, "control") as address:
                sock.connect(address)
        except BlockingIOError:  # its queue of waiting clients is full
            return True
        except OSError:
            return False
    return True


def runs(folder: Path) -> bool:
    """Return whether the sandbox in `folder` has a keeper.

    Raises:
        OSError: The lock cannot be opened.
    """
    try:
        return is_held(folder / "lock")
    except FileNotFoundError:
        return answers(folder)


def is_running(state: State | Unreadable) -> bool:
    """Return whether a sandbox runs now."""
    with contextlib.suppress(OSError):
        return runs(state.folder)
    return answers(state.folder)


def await_machine(folder: Path) -> bool:
    """Wait until the machine of a killed keeper has ended. The caller has the sandbox's lock. Return False if it still runs.

    The kernel frees the lock first, then kills the machine, and a large one takes long to end. QEMU locks parts of a disk
    until then, and another QEMU refuses to start.
    """
    deadline = time.monotonic() + _MACHINE_S
    while any(_is_used(folder / name) for name in ("disk.qcow2", "disk.raw")):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOCK_POLL_S)
    return True


def _is_used(disk: Path) -> bool:
    """Return whether a process has locked a part of a disk."""
    try:
        fd = open_file(disk)
    except OSError:
        return False
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
    except OSError:  # a file system without locks: QEMU does without, too
        return False
    finally:
        os.close(fd)


def wait_end(state: State | Unreadable, timeout_s: float | None = None) -> None:
    """Wait until the sandbox has stopped.

    Raises:
        Busy: It still runs after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    lock = None
    with contextlib.suppress(OSError):
        lock = open_file(state.folder / "lock")  # keep it open: a new sandbox may take the name soon
    try:
        while is_locked(lock) if lock is not None else answers(state.folder):
            if deadline is not None and time.monotonic() > deadline:
                pid = f", process {state.pid}" if isinstance(state, State) else ""
                raise Busy(f"sandbox {printable(state.name)} still runs{pid}", "end that process, then try again")
            time.sleep(_POLL_S)
    finally:
        if lock is not None:
            os.close(lock)


def not_running(state: State | Unreadable) -> RootdiskError:
    """Return the error for a command that needs a running sandbox."""
    return BadInput(f"sandbox {state.name} does not run", f"runner start {state.name}")
