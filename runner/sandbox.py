"""Sandboxes on disk: one directory each in the store, and what can be seen of them by any process.

    NAME/lock          held (flock) by the sandbox's keeper while it runs: the kernel drops it, however the keeper ends
    NAME/state.json    what it is, who keeps it, how it ended; no secrets
    NAME/records       the slot's records (0600): variables, keys, command; written again at every start
    NAME/slot.json     digests of what was last written to the slot
    NAME/disk.*        its disk
    NAME/control       the keeper's socket
    NAME/console.log, output.log, machine.log

A directory gets its name by rename, with lock and state in it, so who sees the name sees a whole sandbox.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import BadInput, Busy, RootdiskError
from runner.files import is_locked, write_json
from runner.store import Store

_NEW = ".new-"
_NEW_MAX_AGE_S = 60  # a directory without a lock in it for that long belongs to nobody
_RELEASE_S = 2.0  # how long somebody who only looks may hold the lock


class Spec(NamedTuple):
    """What a sandbox is made of, as its user asked for it; kept for `start` and `inspect`. No secrets."""

    name: str
    reference: str
    artifact: str  # the manifest's digest
    disk: str  # hex digests, as the store names its files: of the base disk
    config: str
    kernel: str | None
    initramfs: str | None
    disk_size: int  # bytes, of the sandbox's own disk
    memory_mib: int
    cpus: int
    network: str = "user"
    forwards: tuple[tuple[str, str, int, int], ...] = ()
    volumes: tuple[tuple[str, str, bool], ...] = ()  # path of the host, of the guest, read-only
    labels: tuple[tuple[str, str], ...] = ()
    keep: bool = False
    detached: bool = False
    interactive: bool = False
    terminal: bool = False
    accelerator: str | None = None
    backend: str | None = None
    clone: str | None = None
    timeout_s: float | None = None

    @property
    def uses(self) -> set[str]:
        """What must stay in the store as long as the sandbox is there."""
        manifest = self.artifact.partition(":")[2]
        return {digest for digest in (manifest, self.disk, self.config, self.kernel, self.initramfs) if digest}


class State(NamedTuple):
    """A sandbox as it was last seen."""

    folder: Path
    spec: Spec
    running: bool
    pid: int  # the keeper's; 0 when it has ended
    created: float  # Unix time, as the others
    started: float
    ended: float | None
    status: int | None  # exit status of the last run; None when it runs or was cut off
    error: str  # why the last run failed

    @property
    def text(self) -> str:
        """In a word or two."""
        if self.running:
            return "running"
        return "cut off" if self.status is None else f"exited ({self.status})"

    def to_json(self) -> dict[str, Any]:
        """For programs: of `ps --json` and `inspect`."""
        spec = self.spec._asdict()
        spec["labels"] = dict(self.spec.labels)
        spec["ports"] = [
            {"protocol": protocol, "address": address, "host": host, "guest": guest}
            for protocol, address, host, guest in spec.pop("forwards")
        ]
        spec["volumes"] = [{"host": a, "guest": b, "read_only": c} for a, b, c in self.spec.volumes]
        fields = ("pid", "created", "started", "ended", "status", "error", "running")
        return {**spec, **{name: getattr(self, name) for name in fields}}


class Sandbox:
    """A sandbox's directory while this process holds its lock."""

    def __init__(self, folder: Path, lock: int, spec: Spec, created: float) -> None:
        self.folder = folder
        self.spec = spec
        self._lock = lock
        self._created = created

    @classmethod
    def create(cls, store: Store, spec: Spec) -> Sandbox:
        """A new one, locked; BadInput where there is one of that name. Nothing has that name before `name` is called."""
        folder = store.sandboxes / f"{_NEW}{os.urandom(8).hex()}"
        folder.mkdir(mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        sandbox = cls(folder, lock, spec, time.time())
        sandbox.write_state()
        return sandbox

    @classmethod
    def open(cls, state: State) -> Sandbox:
        """A kept one, to start it again or to remove it; Busy where it runs."""
        deadline = time.monotonic() + _RELEASE_S
        while (lock := _locked(state.folder)) is None:
            if time.monotonic() > deadline or not state.folder.exists():
                raise Busy(f"sandbox {state.spec.name} runs", f"runner stop {state.spec.name}")
            time.sleep(0.02)
        return cls(state.folder, lock, state.spec, state.created)

    def take_name(self) -> None:
        """Be seen under its own name from now on; BadInput where another has it."""
        target = self.folder.parent / self.spec.name
        try:
            os.rename(self.folder, target)
        except OSError:
            with contextlib.suppress(OSError):
                discard(target)  # of a keeper that was killed, and not to be kept
            try:
                os.rename(self.folder, target)
            except OSError as err:
                hint = f"choose another --name, or runner rm {self.spec.name}"
                raise BadInput(f"there is a sandbox {self.spec.name} already", hint) from err
        self.folder = target

    def write_state(self, *, pid: int = 0, started: float = 0, status: int | None = None, error: str = "") -> None:
        """For others to see: who keeps it (0: nobody any more), since when, and how it ended."""
        state = {
            "spec": self.spec._asdict(),
            "pid": pid,
            "created": self._created,
            "started": started,
            "ended": None if pid or not started else time.time(),
            "status": status,
            "error": error,
        }
        # A sandbox that is not kept need not outlive a power cut.
        write_json(self.folder / "state.json", state, 0o600, durable=self.spec.keep)

    def remove(self) -> None:
        """It and all it has."""
        import shutil  # when a sandbox has ended, there is time to load it

        with contextlib.suppress(OSError):
            hidden = self.folder.with_name(f"{_NEW}{os.urandom(8).hex()}")
            os.rename(self.folder, hidden)  # the name is free at once, and nobody sees half of it
            self.folder = hidden
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Let go of the lock, where no other process of ours has it too."""
        os.close(self._lock)


def _locked(folder: Path) -> int | None:
    """The open, locked lock of a directory; None where another has it, or the directory was replaced meanwhile."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(folder / "lock")):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def read(folder: Path) -> State:
    """The sandbox in `folder`; OSError or ValueError where there is none."""
    running = is_locked(folder / "lock")
    value = json.loads((folder / "state.json").read_bytes())
    try:
        spec = value["spec"]
        for name in ("forwards", "volumes", "labels"):
            spec[name] = tuple(map(tuple, spec[name]))
        return State(
            folder,
            Spec(**spec),
            running,
            value["pid"] if running else 0,
            value["created"],
            value["started"],
            value["ended"],
            value["status"],
            value["error"],
        )
    except (KeyError, TypeError) as err:
        raise ValueError(f"{folder / 'state.json'}: {err}") from err


def states(store: Store) -> Iterator[State]:
    """Every sandbox, also those that are being made."""
    for folder in sorted(store.sandboxes.iterdir()):
        with contextlib.suppress(OSError, ValueError):
            yield read(folder)


def find(store: Store, name: str) -> State:
    """The sandbox of that name; BadInput where there is none."""
    try:
        if "/" in name or name.startswith("."):
            raise FileNotFoundError
        return read(store.sandboxes / name)
    except (OSError, ValueError) as err:
        import difflib

        names = [state.spec.name for state in states(store)]
        near = difflib.get_close_matches(name, names, 1)
        raise BadInput(f"no sandbox {name!r:.80}", f"did you mean {near[0]}?" if near else "see runner ps -a") from err


def discard(folder: Path) -> None:
    """Remove a sandbox that nobody keeps and that is not to be kept, or one that was never finished."""
    import shutil

    try:
        lock = _locked(folder)
    except FileNotFoundError:
        if _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)
        return
    if lock is None:
        return
    try:
        # Whoever makes a directory locks it before the state is in it: with a state, its maker is dead.
        left = _is_left(folder) or (folder.name.startswith(_NEW) and (folder / "state.json").exists())
        with contextlib.suppress(OSError, ValueError):
            left |= not read(folder).spec.keep
        if left:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _is_left(folder: Path) -> bool:
    return folder.name.startswith(_NEW) and time.time() - folder.stat().st_mtime > _NEW_MAX_AGE_S


def sweep(store: Store) -> None:
    """Remove what killed processes left."""
    for folder in store.sandboxes.iterdir():
        with contextlib.suppress(OSError):
            discard(folder)


def is_running(state: State) -> bool:
    return is_locked(state.folder / "lock")


def wait_end(state: State) -> None:
    """Return when the sandbox does not run any more."""
    try:
        fd = os.open(state.folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def not_running(state: State) -> RootdiskError:
    return BadInput(f"sandbox {state.spec.name} does not run", f"runner start {state.spec.name}")
