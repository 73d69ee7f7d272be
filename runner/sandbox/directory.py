"""Sandboxes on disk: a directory for each in the store, which every process of the user can read.

    NAME/lock          locked (flock) by the keeper while the sandbox runs; see liveness.py
    NAME/state.json    specification, keeper process and last exit; no secrets
    NAME/records       records for the slot (0600): variables, keys, command; written again at each start
    NAME/slot.json     digests of the bytes last written to the slot
    NAME/disk.*        the disk
    NAME/control       socket of the keeper
    NAME/console.log, output.log, machine.log, helperN.log
                       bounded logs; older lines are in *.old. keeper.log has errors of the keeper
    NAME/spare         reserved space, so that the last state can be written to a full disk

A directory gets its name by rename and already contains lock and state. So a name always stands for a complete sandbox.

A sandbox whose state cannot be read (damaged, another version, another user) is `Unreadable`. `ps -a` lists it, and only
`rm` removes it: with `--force` if its files have another version.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rootdisk.durable import atomic_write, open_file
from rootdisk.errors import BadInput, Busy, RootdiskError
from rootdisk.system.ownership import make_directory
from rootdisk.system.versions import OtherVersion
from rootdisk.text import printable
from runner.sandbox.liveness import answers, await_machine, take_lock, try_lock
from runner.sandbox.lookup import NEW, look, read
from runner.sandbox.state import MAX_BYTES, Spec, State, Unreadable, state_json
from runner.store.store import Store

_NEW_MAX_AGE_S = 60  # an unnamed directory without a lock is left over after this time
_ERROR_MAX_CHARS = 8192
CGROUP = "cgroup"  # in `in_use`: that of the machine
_GROWTH_BYTES = 64 << 10  # reserved for what the state gains when the sandbox runs and ends


class Sandbox:
    """A sandbox's directory that this process has locked."""

    def __init__(self, folder: Path, lock: int, spec: Spec, created: float, raw: Mapping[str, Any]) -> None:
        self.folder = folder
        self.spec = spec
        self.lock = lock  # descriptor
        self.in_use: Mapping[str, str] = {}  # what its run has: accelerator, way of copying the disk
        self._created = created
        self._raw = raw

    @classmethod
    def create(cls, store: Store, spec: Spec) -> Sandbox:
        """Create a locked directory without a name; call `take_name` when it is complete.

        Raises:
            BadInput: `spec` is too large for a state file.
        """
        folder = store.sandboxes / f"{NEW}{os.urandom(8).hex()}"
        make_directory(folder)
        lock = open_file(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(lock, fcntl.LOCK_EX)
        sandbox = cls(folder, lock, spec, time.time(), {})
        try:
            sandbox.write_state()
            if (folder / "state.json").stat().st_size > MAX_BYTES - _GROWTH_BYTES:
                raise ValueError(f"more than {MAX_BYTES - _GROWTH_BYTES} bytes")
            read(folder)  # check that the state can be read again
        except BaseException as err:
            sandbox.remove()
            sandbox.release()
            if isinstance(err, ValueError):
                raise BadInput(
                    f"sandbox {spec.name}: its state cannot be written: {err}", "shorten labels and paths"
                ) from err
            raise
        return sandbox

    @classmethod
    def open(cls, state: State) -> Sandbox:
        """Lock a kept sandbox, to start it again.

        Raises:
            Busy: It runs.
        """
        lock = take_lock(state)
        try:
            if not _clear(state):
                raise Busy(f"the machine of sandbox {state.name} has not ended yet", "try again later")
        except BaseException:
            os.close(lock)
            raise
        return cls(state.folder, lock, state.spec, state.created, state.raw)

    @classmethod
    def rename(cls, state: State, name: str) -> None:
        """Give a sandbox that has ended another name. Busy if it runs; BadInput if another has that name."""
        sandbox = cls.open(state)
        sandbox.spec = state.spec._replace(name=name)
        try:
            if name != state.name:
                sandbox.take_name()
        finally:
            sandbox.release()

    def move(self, name: str) -> None:
        """Give a sandbox that runs another name; called by its keeper. BadInput if another has that name."""
        before = self.spec
        self.spec = before._replace(name=name)
        try:
            self.take_name()
        except BaseException:
            self.spec = before
            raise

    def take_name(self) -> None:
        """Give the directory its final name, which makes it visible.

        Raises:
            BadInput: Another sandbox has this name.
        """
        target = self.folder.parent / self.spec.name
        try:
            os.rename(self.folder, target)
        except OSError:
            with contextlib.suppress(OSError):
                discard(target)  # left by a killed keeper, and not to be kept
            try:
                os.rename(self.folder, target)
            except OSError as err:
                detail = ""
                with contextlib.suppress(FileNotFoundError):  # just removed
                    other = look(target)
                    detail = f", which cannot be read: {other.reason}" if isinstance(other, Unreadable) else ""
                hint = f"choose another --name, or runner rm {self.spec.name}"
                raise BadInput(f"there is already a sandbox {self.spec.name}{detail}", hint) from err
        self.folder = target

    def write_state(
        self,
        *,
        pid: int = 0,
        started: float = 0,
        status: int | None = None,
        error: str = "",
        ended: float | None = None,
        ended_by: str = "",
    ) -> None:
        """Write state.json for other processes.

        Args:
            pid: The keeper; 0 if it has ended.
            started: Unix time of the last start; 0 if it never started.
            status: Exit status of the last run.
            error: The reason why the last run failed.
            ended: When it ended, if that was not just now.
            ended_by: BY_USER or BY_HOST, if its program did not end by itself.
        """
        state = state_json(
            self._raw,
            self.spec,
            pid=pid,
            created=self._created,
            started=started,
            ended=ended or (None if pid or not started else time.time()),
            status=status,
            error=error[:_ERROR_MAX_CHARS],
            ended_by=ended_by,
            in_use=self.in_use,
        )
        data = json.dumps(state, indent=1, sort_keys=True).encode() + b"\n"
        # Only a kept sandbox must survive a power cut.
        atomic_write(self.folder / "state.json", data, 0o600, durable=self.spec.keep)

    def remove(self) -> None:
        """Delete the sandbox and its files, as far as possible."""
        with contextlib.suppress(RootdiskError):
            _remove(self.folder)

    def release(self) -> None:
        """Close our descriptor of the lock. It stays locked while another process has a copy."""
        os.close(self.lock)


def check_removable(sandbox: State | Unreadable, *, force: bool) -> None:
    """Refuse to remove a sandbox of another version without `force`: only its own release knows what it contains.

    Raises:
        BadInput: The sandbox has another version.
    """
    if isinstance(sandbox, Unreadable) and sandbox.other_version and not force:
        raise BadInput(f"sandbox {printable(sandbox.name)} is not removed: {sandbox.reason}", sandbox.remedy)


def remove(sandbox: State | Unreadable) -> None:
    """Delete a stopped sandbox because its user has asked for it.

    Raises:
        Busy: It runs.
        RootdiskError: It cannot be deleted.
    """
    try:
        lock = take_lock(sandbox)
    except OSError as err:  # the lock is a directory or a link, or belongs to another user
        if answers(sandbox.folder):
            raise Busy(f"sandbox {sandbox.name} runs", f"runner rm --force {sandbox.name}") from err
        _remove(sandbox.folder)
        return
    except Busy:
        if os.path.lexists(sandbox.folder):
            raise
        return  # another process has just removed it
    try:
        if isinstance(sandbox, State):
            _clear(sandbox)
        _remove(sandbox.folder)
    finally:
        os.close(lock)


def _clear(state: State) -> bool:
    """Wait for the machine of a killed keeper to end, and remove its cgroup. The caller has the lock of the sandbox.

    Return False if the machine has not ended.
    """
    if not state.raw.get("pid"):
        return True
    has_ended = await_machine(state.folder)
    if path := state.in_use.get(CGROUP):
        from runner.machine.cgroup import end_left  # seldom needed

        end_left(path)
    return has_ended


def _remove(folder: Path) -> None:
    """Delete the directory of a sandbox.

    Raises:
        RootdiskError: It cannot be deleted; what is left keeps its name.
    """
    hidden = folder.with_name(f"{NEW}{os.urandom(8).hex()}")
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            folder.unlink()
            return
        os.rename(folder, hidden)  # frees the name at once, and no process sees an incomplete sandbox
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
    with contextlib.suppress(OSError):  # it has files only, as a rule
        for path in list(folder.iterdir()):
            path.unlink()
        folder.rmdir()
        return
    import shutil  # slow to import, and most sandboxes end without it

    while folder.exists():
        with contextlib.suppress(FileNotFoundError):  # another process is removing it too
            shutil.rmtree(folder)


def discard(folder: Path) -> None:
    """Remove a sandbox that has no keeper and is not to be kept, or that was never finished.

    An unreadable sandbox stays, unless it never had a name. A sandbox of another version always stays.
    """
    hidden = folder.name.startswith(NEW)
    try:
        lock = try_lock(folder)
    except FileNotFoundError:
        lock, is_left = None, _is_left(folder)
    else:
        if lock is None:
            return
        try:
            # A directory is locked before its state is written. We got the lock, so its maker is dead.
            state = read(folder)
            _clear(state)
            is_left = not state.spec.keep or hidden
        except OtherVersion:
            is_left = False
        except FileNotFoundError:
            is_left = _is_left(folder)
        except (OSError, ValueError):
            is_left = hidden
    try:
        if is_left:
            with contextlib.suppress(RootdiskError):  # `ps` lists it, and `rm` tells why it stays
                _remove(folder)
    finally:
        if lock is not None:
            os.close(lock)


def _is_left(folder: Path) -> bool:
    """Return whether a directory without lock or state was left by a killed process."""
    if not folder.name.startswith(NEW) or time.time() - folder.stat().st_mtime < _NEW_MAX_AGE_S:
        return False
    try:
        read(folder)
    except OtherVersion:
        return False
    except (OSError, ValueError):
        pass
    return True


def sweep(store: Store) -> None:
    """Remove directories that killed processes have left."""
    for folder in store.sandboxes.iterdir():
        with contextlib.suppress(OSError, RootdiskError):
            discard(folder)
