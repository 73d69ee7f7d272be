"""Make a template, beside a sandbox that has started and with the lowest priority.

A machine of its own boots to the point before the disk is touched, and is saved there. It runs for a moment in a process that
outlives the sandbox, is bounded in time, and holds nothing of it: no disk, no slot, no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from rootdisk.durable import atomic_write, fsync_dir, write_at, write_json
from rootdisk.errors import Busy, RootdiskError
from rootdisk.system import process
from rootdisk.text import describe_error
from runner.channel import messages
from runner.machine import qemu, qmp
from runner.machine.model import Machine
from runner.store.store import Store
from runner.template import orders, saved

TIMEOUT_S = 120.0  # for a slow machine that emulates, with other work
KEPT_COUNT = 8  # templates; the least recently used is removed
_FREE_MIN_BYTES = 1 << 30  # the disk is not filled for a template
_RAM_MAX_BYTES = 1 << 30  # in use; more would not start quickly
_SAVED_S = 20.0
_PIPE_BYTES = 1 << 20
_NICE = 19


def make_beside(store: Store, machine: Machine, template_key: str, words: Sequence[str]) -> None:
    """Start a process that makes the template for `machine`, if it is wanted and nobody makes it.

    `words` are for the command line of its kernel, in addition to the artifact's.
    """
    if not saved.is_wanted(store, template_key) or _free_bytes(store) < _FREE_MIN_BYTES:
        return
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)  # only until the other process has let go of all that is ours
        return
    try:
        process.detach((), Path(os.devnull))
        if os.fork() == 0:
            process.retitle("runner: makes a template")
            _make(store, machine, template_key, words)
    finally:
        os._exit(0)


def _make(store: Store, machine: Machine, template_key: str, words: Sequence[str]) -> None:
    """Make it, or record why not. A signal, or the end of the time, ends the process; its machine ends with it."""
    process.restart_signals()
    signal.alarm(int(TIMEOUT_S + _SAVED_S))
    os.nice(_NICE)
    try:
        make(store, machine, template_key, words)
    except Busy:
        pass
    except (RootdiskError, OSError) as err:
        saved.note_failure(store, template_key, f"could not be made: {describe_error(err)}")


def make(store: Store, machine: Machine, template_key: str, words: Sequence[str] = ()) -> None:
    """Make the template for `machine` in the store.

    Raises:
        Busy: Another process makes it.
        RootdiskError, OSError: It cannot be made; nothing is left of it.
    """
    folder = store.root / "templates" / template_key
    new = folder.with_name(f".new-{template_key}")
    with saved.making(store, template_key), process.unprivileged(store.root / "locks") as user:
        saved.remove(new)  # of a maker that was killed
        new.mkdir(mode=0o700)
        try:
            _save(_blank(machine, words), new, user)
            fsync_dir(new)
            saved.remove(folder)
            new.rename(folder)
            fsync_dir(folder.parent)
        finally:
            saved.remove(new)
    _remove_rest(store)


def _blank(machine: Machine, words: Sequence[str]) -> Machine:
    blank = saved.blank(machine)
    return blank._replace(cmdline=" ".join((blank.cmdline, *words)))


def _save(machine: Machine, folder: Path, user: process.User | None) -> None:
    """Boot the machine, and write its RAM and state to `folder`."""
    deadline = time.monotonic() + TIMEOUT_S
    size = machine.memory_mib << 20
    with open(os.memfd_create("rootdisk-template", os.MFD_CLOEXEC), "r+b", buffering=0) as ram:
        os.ftruncate(ram.fileno(), size)
        vm = qemu.start(machine, folder, user, qemu.Memory(ram.fileno()))
        try:
            assert vm.monitor is not None
            _wait_paused(vm.channel, deadline)
            monitor = qmp.Monitor(vm.monitor, deadline)
            monitor.ask("migrate-set-capabilities", **qmp.IGNORE_SHARED)
            state = device_state(monitor, deadline)
        finally:
            vm.kill()
        if os.fstat(ram.fileno()).st_blocks * 512 > _RAM_MAX_BYTES:
            raise RootdiskError("the machine uses too much memory before its disk is there")
        digest = write_ram(ram.fileno(), folder / "ram", size)
    atomic_write(folder / "state", state, 0o600)
    value = {
        "version": saved.VERSION,
        "created": time.time(),
        "nonce": os.urandom(16).hex(),
        "what": _what(machine),
        "ram": [size, digest],
        "state": [len(state), hashlib.sha256(state).hexdigest()],
    }
    write_json(folder / "template.json", value, 0o600)


def _what(machine: Machine) -> str:
    network = "--allow" if machine.lanes else f"network {machine.network}"
    verity = ", dm-verity" if machine.verity is not None else ""
    return f"{machine.memory_mib} MiB, {machine.cpus} CPU, {machine.accelerator}, {network}{verity}"


def _wait_paused(channel: socket.socket, deadline: float) -> None:
    """Wait until the init says that it can be saved."""
    try:
        said = orders.hear(channel, deadline)
    except TimeoutError as err:
        raise RootdiskError("its machine did not get to the disk in time") from err
    except ValueError as err:
        raise RootdiskError("its machine has ended") from err
    if said != messages.frame(messages.PAUSED):
        raise RootdiskError("its init cannot be saved")


def device_state(monitor: qmp.Monitor, deadline: float) -> bytes:
    """Return the state of the devices. The machine is stopped after that and never continues.

    It is not stopped before, because a restored machine would be stopped too.
    """
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe:
        try:
            with contextlib.suppress(OSError):
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            monitor.ask("getfd", [writer], fdname="state")
            monitor.ask("migrate", uri="fd:state")
        finally:
            os.close(writer)
        state = bytearray()
        while len(state) <= saved.STATE_MAX_BYTES and (piece := pipe.read(_PIPE_BYTES)):
            state += piece
    until = min(deadline, time.monotonic() + _SAVED_S)
    while (status := monitor.ask("query-migrate").get("status")) not in ("completed", "failed", "cancelled"):
        if time.monotonic() > until:
            raise RootdiskError("QEMU did not save the machine in time")
        time.sleep(0.01)
    if status != "completed" or len(state) > saved.STATE_MAX_BYTES:
        raise RootdiskError("QEMU could not save the machine")
    return bytes(state)


def write_ram(source: int, path: Path, size: int) -> str:
    """Write the RAM to a new file, with holes for pages of zeros, and sync it. Return its digest."""
    digest = hashlib.sha256()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(target, size)
        start, run = 0, bytearray()  # pages that follow each other are written at once
        for offset, page in saved.pages(source):
            digest.update((offset // saved.PAGE).to_bytes(8, "little") + page)
            if offset != start + len(run):
                write_at(target, run, start)
                start, run = offset, bytearray()
            run += page
        write_at(target, run, start)
        os.fsync(target)
    finally:
        os.close(target)
    return digest.hexdigest()


def _remove_rest(store: Store) -> None:
    """Remove the least recently used templates beyond KEPT_COUNT, and those too old to be used."""
    templates = sorted(saved.all_of(store), key=lambda template: template.used, reverse=True)
    for number, template in enumerate(templates):
        if number >= KEPT_COUNT or template.age_s >= saved.END_S:
            saved.remove(template.folder)


def _free_bytes(store: Store) -> int:
    system = os.statvfs(store.root)
    return system.f_bavail * system.f_frsize
