"""Take a snapshot of a running sandbox: runner/sandbox/routing/pause.py has the keeper's part.

The directory has no name until all of it is on the disk and QEMU has read the memory once. If this process is killed, the
sandbox goes on, and the next runner removes what is left.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

from rootdisk.durable import advice, copy_sparse, fsync_dir, open_file, write_json
from rootdisk.errors import BadInput, Busy, RootdiskError
from rootdisk.system import process
from rootdisk.system.ownership import make_directory
from rootdisk.text import printable
from runner.channel import messages
from runner.disk.clone import duplicate, existing
from runner.sandbox import machines, orders, snapshots
from runner.sandbox.directory import Sandbox
from runner.sandbox.prepare import rewrite_slot
from runner.sandbox.routing import pause
from runner.sandbox.state import State, state_json
from runner.store import limits
from runner.store.events import Events
from runner.store.pull import StoredArtifact
from runner.store.store import Store
from runner.template import saved

_ANSWER_S = pause.FREEZE_S + pause.SAVE_S + pause.RESUME_S


class Taken(NamedTuple):
    """A snapshot that was taken."""

    name: str
    paused_s: float  # how long the sandbox stood still


def take(store: Store, state: State, name: str, *, has_memory: bool = True) -> Taken:
    """Save the running sandbox as the snapshot `name`, and let it go on.

    Raises:
        BadInput: It cannot be saved; the message says what is in the way.
        RootdiskError: It could not be saved. Nothing is left, and the sandbox goes on.
    """
    _check(store, state, name, has_memory=has_memory)
    snapshots.sweep(store)
    size = (state.spec.memory_mib << 20) + existing(state.folder).path.stat().st_blocks * 512
    limits.check(store.root, size if has_memory else 0)
    artifact = StoredArtifact.kept(store, state.spec)
    if artifact.source is not None:
        artifact.release()
        raise BadInput(
            f"sandbox {state.name}: its disk is still being fetched", f"runner pull {state.spec.reference} waits for it"
        )
    folder = store.root / "snapshots" / f"{pause.NEW}{os.urandom(8).hex()}"
    make_directory(folder)
    try:
        lock = open_file(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if state.running:
                paused_s = _save(state, folder, has_memory=has_memory)
            else:
                paused_s = 0.0
                _copy_stopped(state, folder)
            _complete(store, state, artifact, folder, has_memory=has_memory)
            (folder / "lock").unlink()
            fsync_dir(folder)
            _take_name(folder, name)
        finally:
            os.close(lock)
    except OSError as err:
        raise RootdiskError(
            f"snapshot {name}: {err.strerror or err}", advice(err, size, folder.parent) or "the sandbox goes on"
        ) from err
    finally:
        saved.remove(folder)
        artifact.release()
    Events(store.root, state.name).tell("snapshot", snapshot=name, paused_ms=int(paused_s * 1000))
    return Taken(name, paused_s)


def _check(store: Store, state: State, name: str, *, has_memory: bool) -> None:
    if has_memory and not state.running:
        raise BadInput(f"sandbox {state.name} does not run", f"runner start {state.name}")
    if snapshots.find_any(store, name) is not None:
        raise BadInput(f"there is already a snapshot {name}", f"choose another name, or runner rm --snapshot {name}")
    spec = state.spec
    if spec.backend == "krun":
        raise BadInput(f"sandbox {state.name} runs with libkrun, which cannot be saved", "boot it with --backend qemu")
    if not has_memory:
        return
    alternative = f"runner snapshot --without-memory {state.name} {name} saves its disk"
    if spec.volumes:
        raise BadInput(f"sandbox {state.name} has volumes, so its memory cannot be saved", alternative)
    if spec.allow:
        raise BadInput(f"sandbox {state.name} was booted with --allow, so its memory cannot be saved", alternative)


def _save(state: State, folder: Path, *, has_memory: bool) -> float:
    """Have the sandbox stand still, and save memory and disk to `folder`. Return for how long it stood, in seconds."""
    with orders.connect(state) as sock:
        decoder = messages.Decoder(messages.TO_SNAPSHOT)
        start = time.monotonic()
        sock.settimeout(_ANSWER_S)
        sock.sendall(pause.request(folder.name, has_memory=has_memory))
        _wait(sock, decoder, messages.PAUSED, state)
        duplicate(existing(state.folder).path, folder)
        sock.sendall(messages.frame(messages.RESUME))
        _wait(sock, decoder, messages.RESUMED, state)
        return time.monotonic() - start


def _copy_stopped(state: State, folder: Path) -> None:
    sandbox = Sandbox.open(state)
    try:
        duplicate(existing(state.folder).path, folder)
    finally:
        sandbox.release()


def _wait(sock: socket.socket, decoder: messages.Decoder, kind: int, state: State) -> None:
    """Wait for an answer of the keeper."""
    while True:
        try:
            data = sock.recv(4096)
        except TimeoutError as err:
            raise Busy(f"the keeper of sandbox {state.name} does not answer", f"runner kill {state.name}") from err
        except ConnectionError:
            data = b""
        if not data:
            raise RootdiskError(f"sandbox {state.name} has ended", "runner ps -a")
        for received, _, payload in decoder.feed(data):
            if received == messages.ERROR:
                why = printable(payload.decode(errors="replace"), 500)
                raise RootdiskError(f"sandbox {state.name} could not be saved: {why}", "it goes on")
            if received == kind:
                return


def _complete(store: Store, state: State, artifact: StoredArtifact, folder: Path, *, has_memory: bool) -> None:
    """Write everything else, and sync all files."""
    files = ("slot.json", "records") if has_memory else ("slot.json",)
    for file in files:
        copy_sparse(state.folder / file, folder / file)
        (folder / file).chmod(0o600)
    disk = existing(folder)
    if not has_memory:  # then variables and keys of the run are not in it either
        rewrite_slot(folder, artifact, ())
    memory = machine_value = None
    if has_memory:
        from runner.snapshot.convert import convert

        machine, machine_value = machines.saved_machine(store, state, artifact)
        try:
            with process.unprivileged(store.root / "locks") as user:
                ram, device_state = convert(machine, folder / "stream", folder, user)
        except RootdiskError as err:
            raise RootdiskError(f"the snapshot cannot be read again: {err.message}", "the sandbox goes on") from err
        memory = {"nonce": os.urandom(16).hex(), "ram": ram, "state": device_state}
    for path in (disk.path, *(folder / file for file in files)):
        _sync(path)
    value = {
        "version": snapshots.VERSION,
        "created": time.time(),
        "sandbox": state.name,
        "state": state_json(state.raw, state.spec._replace(keep=True), pid=0, status=None, error=""),
        "disk": snapshots.data_digest(disk.path),
        "machine": machine_value or {},
        "memory": memory,
        "files": {file: snapshots.file_digest(folder / file) for file in files},
    }
    write_json(folder / "snapshot.json", {**value, "digest": snapshots.digest_of(value)}, 0o600)


def _sync(path: Path) -> None:
    fd = open_file(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _take_name(folder: Path, name: str) -> None:
    try:
        os.rename(folder, folder.with_name(name))
    except OSError as err:
        if snapshots.find_any(Store(folder.parents[1]), name) is None:
            raise
        raise BadInput(f"there is already a snapshot {name}", "choose another name") from err
    fsync_dir(folder.parent)
