"""Sandboxes on disk: one directory each in the store, and what can be seen of them by any process.

    NAME/lock          held (flock) by the sandbox's keeper while it runs: the kernel drops it, however the keeper ends
    NAME/state.json    what it is, who keeps it, how it ended; no secrets
    NAME/records       the slot's records (0600): variables, keys, command; written again at every start
    NAME/slot.json     digests of what was last written to the slot
    NAME/disk.*        its disk
    NAME/control       the keeper's socket
    NAME/console.log, output.log, machine.log, helperN.log
                       bounded, with what came before in *.old; keeper.log: what went wrong in the keeper
    NAME/spare         room for the last state on a full disk

A directory gets its name by rename, with lock and state in it, so who sees the name sees a whole sandbox. What cannot be
read (damaged, of a newer version, another user's) is an Unreadable: seen by `ps -a`, removed by `rm` and by nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rootdisk.durable import atomic_write, open_file, read_file, socket_address
from rootdisk.errors import BadInput, Busy, RootdiskError
from rootdisk.system.locks import is_held, is_locked
from rootdisk.system.ownership import make_directory, user_name
from rootdisk.text import printable
from runner.sandbox.state import MAX_BYTES, Newer, Spec, State, Unreadable, parse, state_json
from runner.store.store import Store

__all__ = [
    "Sandbox",
    "Spec",
    "State",
    "Unreadable",
    "all_of",
    "discard",
    "find",
    "find_any",
    "is_running",
    "look",
    "needed",
    "not_running",
    "read",
    "remove",
    "states",
    "sweep",
    "wait_end",
]

_NEW = ".new-"
_NEW_MAX_AGE_S = 60  # a directory without a lock in it for that long belongs to nobody
_POLL_S = 0.05
_ERROR_MAX_CHARS = 8192
_ROOM_BYTES = 64 << 10  # that a state may grow by, when its sandbox runs and has ended
_RELEASE_S = 2.0  # how long somebody who only looks may hold the lock


class Sandbox:
    """A sandbox's directory while this process holds its lock."""

    def __init__(self, folder: Path, lock: int, spec: Spec, created: float, raw: Mapping[str, Any]) -> None:
        self.folder = folder
        self.spec = spec
        self.lock = lock  # its descriptor
        self.in_use: Mapping[str, str] = {}  # what its run has: accelerator, way of copying the disk
        self._created = created
        self._raw = raw

    @classmethod
    def create(cls, store: Store, spec: Spec) -> Sandbox:
        """A new one, locked. Nothing has its name before `take_name` is called. BadInput if `spec` cannot be written down."""
        folder = store.sandboxes / f"{_NEW}{os.urandom(8).hex()}"
        make_directory(folder)
        lock = open_file(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(lock, fcntl.LOCK_EX)
        sandbox = cls(folder, lock, spec, time.time(), {})
        try:
            sandbox.write_state()
            if (folder / "state.json").stat().st_size > MAX_BYTES - _ROOM_BYTES:
                raise ValueError(f"more than {MAX_BYTES - _ROOM_BYTES} bytes")
            read(folder)  # what is written here can be read by the next one
        except BaseException as err:
            sandbox.remove()
            sandbox.release()
            if isinstance(err, ValueError):
                raise BadInput(f"sandbox {spec.name} cannot be described: {err}", "shorten labels and paths") from err
            raise
        return sandbox

    @classmethod
    def open(cls, state: State) -> Sandbox:
        """A kept one, to start it again or to remove it; Busy if it runs."""
        return cls(state.folder, _take_lock(state), state.spec, state.created, state.raw)

    @classmethod
    def rename(cls, state: State, name: str) -> None:
        """Give a sandbox that has ended another name. Busy if it runs; BadInput if another has that name."""
        opened = cls.open(state)
        opened.spec = state.spec._replace(name=name)
        try:
            if name != state.name:
                opened.take_name()
        finally:
            opened.release()

    def take_name(self) -> None:
        """Be seen under its own name from now on; BadInput if another has it."""
        target = self.folder.parent / self.spec.name
        try:
            os.rename(self.folder, target)
        except OSError:
            with contextlib.suppress(OSError):
                discard(target)  # of a keeper that was killed, and not to be kept
            try:
                os.rename(self.folder, target)
            except OSError as err:
                what = ""
                with contextlib.suppress(FileNotFoundError):  # it goes just now
                    other = look(target)
                    what = f", which cannot be read: {other.reason}" if isinstance(other, Unreadable) else ""
                hint = f"choose another --name, or runner rm {self.spec.name}"
                raise BadInput(f"there is a sandbox {self.spec.name} already{what}", hint) from err
        self.folder = target

    def write_state(self, *, pid: int = 0, started: float = 0, status: int | None = None, error: str = "") -> None:
        """For others to see: who keeps it (0: nobody any more), since when, and how it ended."""
        state = state_json(
            self._raw,
            self.spec,
            pid=pid,
            created=self._created,
            started=started,
            ended=None if pid or not started else time.time(),
            status=status,
            error=error[:_ERROR_MAX_CHARS],
            in_use=self.in_use,
        )
        data = json.dumps(state, indent=1, sort_keys=True).encode() + b"\n"
        # A sandbox that is not kept need not outlive a power cut.
        atomic_write(self.folder / "state.json", data, 0o600, durable=self.spec.keep)

    def remove(self) -> None:
        """Delete it and all it has, as far as that is possible."""
        with contextlib.suppress(RootdiskError):
            _remove(self.folder)

    def release(self) -> None:
        """Let go of the lock, where no other process of ours has it too."""
        os.close(self.lock)


def _take_lock(state: State | Unreadable) -> int:
    """The locked lock of a sandbox that has ended, made again if it is missing; Busy if the sandbox runs."""
    deadline = time.monotonic() + _RELEASE_S
    while True:
        try:
            lock = _locked(state.folder)
        except FileNotFoundError:
            lock = _made_lock(state.folder)
        if lock is not None:
            return lock
        if time.monotonic() > deadline or not state.folder.exists():
            raise Busy(f"sandbox {state.name} runs", f"runner stop {state.name}")
        time.sleep(0.02)


def _locked(folder: Path) -> int | None:
    """The open, locked lock of a directory; None if another has it, or the directory was replaced meanwhile."""
    fd = open_file(folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(folder / "lock")):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def _made_lock(folder: Path) -> int | None:
    """A new lock where somebody has removed it; None if the keeper that had it lives, or another was quicker."""
    if _answers(folder):
        return None
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.close(open_file(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL))
        return _locked(folder)
    return None


def _answers(folder: Path) -> bool:
    """Whether a keeper listens there: how a sandbox without its lock is known to run."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            with socket_address(folder, "control") as address:
                sock.connect(address)
        except BlockingIOError:  # more wait for it than it lets wait
            return True
        except OSError:
            return False
    return True


def _runs(folder: Path) -> bool:
    """Whether the sandbox in `folder` has a keeper; OSError if that cannot be found out."""
    try:
        return is_held(folder / "lock")
    except FileNotFoundError:
        return _answers(folder)


def read(folder: Path) -> State:
    """Read the sandbox in `folder`; OSError or ValueError if that is not possible."""
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise ValueError("is not a directory")
    running = _runs(folder)
    try:
        return parse(read_file(folder / "state.json", MAX_BYTES), folder, running)
    except ValueError as err:
        raise type(err)(f"state.json {err}") from None


def look(folder: Path) -> State | Unreadable:
    """The sandbox in `folder`, whatever has become of it; FileNotFoundError if nothing has that name."""
    try:
        return read(folder)
    except (OSError, ValueError) as err:
        owner = os.lstat(folder).st_uid
        reason = printable(err)
        if isinstance(err, OSError):
            reason = f"{os.path.basename(err.filename or 'lock')}: {err.strerror}"
            if owner != os.geteuid():
                reason += f" (it belongs to {user_name(owner)})"
        running = False
        with contextlib.suppress(OSError):
            running = _runs(folder)
        return Unreadable(folder, reason, running or _answers(folder))


def all_of(store: Store) -> Iterator[State | Unreadable]:
    """Every sandbox, also those that are being made, and those that cannot be read."""
    for folder in sorted(store.sandboxes.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
            found = look(folder)
            if isinstance(found, State) or not _is_unfinished(folder):
                yield found


def states(store: Store) -> Iterator[State]:
    """Every sandbox that can be read, also those that are being made."""
    return (found for found in all_of(store) if isinstance(found, State))


def needed(store: Store) -> set[str] | None:
    """The hex digests that sandboxes need; None while one cannot be read, which may need anything."""
    digests: set[str] = set()
    for found in all_of(store):
        if isinstance(found, Unreadable):
            return None
        digests |= found.uses
    return digests


def find(store: Store, name: str) -> State:
    """The sandbox of that name; BadInput if there is none, or it cannot be read."""
    found = find_any(store, name)
    if isinstance(found, Unreadable):
        name = printable(name)
        raise BadInput(
            f"sandbox {name} cannot be read: {found.reason}",
            f"to give it up: runner rm {'--force ' if found.running else ''}{name}",
        )
    return found


def find_any(store: Store, name: str) -> State | Unreadable:
    """The sandbox of that name, also one that cannot be read; BadInput if there is none."""
    try:
        if not name or "/" in name or "\0" in name or (name.startswith(".") and not name.startswith(_NEW)):
            raise FileNotFoundError
        return look(store.sandboxes / name)
    except OSError as err:
        import difflib

        names = [found.name for found in all_of(store)]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {printable(near[0])}?" if near else "see runner ps -a"
        raise BadInput(f"no sandbox {printable(name, 80)!r}", hint) from err


def remove(found: State | Unreadable) -> None:
    """Delete a sandbox that has ended, on its user's order. Busy if it runs; RootdiskError if it cannot be deleted."""
    try:
        lock = _take_lock(found)
    except OSError as err:  # the lock is a directory, a link, another user's
        if _answers(found.folder):
            raise Busy(f"sandbox {found.name} runs", f"runner rm --force {found.name}") from err
        _remove(found.folder)
        return
    try:
        _remove(found.folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Delete a sandbox's directory. RootdiskError if that is not possible; then what is left keeps its name."""
    hidden = folder.with_name(f"{_NEW}{os.urandom(8).hex()}")
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            folder.unlink()
            return
        os.rename(folder, hidden)  # the name is free at once, and nobody sees half of it
        with contextlib.suppress(OSError):
            hidden.chmod(0o700)
        _remove_tree(hidden)
    except FileNotFoundError:
        return
    except OSError as err:
        with contextlib.suppress(OSError):
            os.rename(hidden, folder)
        what = f"cannot remove sandbox {printable(folder.name)}: {err.strerror}"
        raise RootdiskError(what, f"sudo chown -R {os.geteuid()} {printable(folder)}, then again") from err


def _remove_tree(folder: Path) -> None:
    import shutil  # when a sandbox has ended, there is time to load it

    while folder.exists():
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(folder)


def discard(folder: Path) -> None:
    """Remove a sandbox that nobody keeps and that is not to be kept, or one that was never finished.

    What cannot be read stays, except what never had a name and is not of a newer version.
    """
    hidden = folder.name.startswith(_NEW)
    try:
        lock = _locked(folder)
    except FileNotFoundError:
        lock, left = None, _is_left(folder)
    else:
        if lock is None:
            return
        try:
            # Whoever makes a directory locks it before the state is in it: with a state, its maker is dead.
            left = not read(folder).spec.keep or hidden
        except Newer:
            left = False
        except FileNotFoundError:
            left = _is_left(folder)
        except (OSError, ValueError):
            left = hidden
    try:
        if left:
            with contextlib.suppress(RootdiskError):  # it is seen by `ps`, and `rm` says why it stays
                _remove(folder)
    finally:
        if lock is not None:
            os.close(lock)


def _is_unfinished(folder: Path) -> bool:
    """Whether it has neither name nor state: it is being made or removed, or was when its process was killed."""
    return folder.name.startswith(_NEW) and not os.path.lexists(folder / "state.json")


def _is_left(folder: Path) -> bool:
    """Whether a directory without a lock, or without a state, is what a killed process has left."""
    if not folder.name.startswith(_NEW) or time.time() - folder.stat().st_mtime < _NEW_MAX_AGE_S:
        return False
    try:
        read(folder)
    except Newer:
        return False
    except (OSError, ValueError):
        pass
    return True


def sweep(store: Store) -> None:
    """Remove what killed processes left."""
    for folder in store.sandboxes.iterdir():
        with contextlib.suppress(OSError, RootdiskError):
            discard(folder)


def is_running(state: State | Unreadable) -> bool:
    with contextlib.suppress(OSError):
        return _runs(state.folder)
    return _answers(state.folder)


def wait_end(state: State | Unreadable, timeout_s: float | None = None) -> None:
    """Return when the sandbox does not run any more; Busy after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    lock = None
    with contextlib.suppress(OSError):
        lock = open_file(state.folder / "lock")  # this one's: the name may be another's soon
    try:
        while is_locked(lock) if lock is not None else _answers(state.folder):
            if deadline is not None and time.monotonic() > deadline:
                pid = f", process {state.pid}" if isinstance(state, State) else ""
                raise Busy(f"sandbox {printable(state.name)} still runs{pid}", "end that process, then try again")
            time.sleep(_POLL_S)
    finally:
        if lock is not None:
            os.close(lock)


def not_running(state: State | Unreadable) -> RootdiskError:
    return BadInput(f"sandbox {state.name} does not run", f"runner start {state.name}")
