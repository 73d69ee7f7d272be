"""Start a machine from a snapshot: as from a template, but its programs already run and must learn that they are in another machine.

keeper                                   QEMU and guest
start, with the sealed RAM          ──▶  reads the state
RESUME, cont                        ──▶  the guest goes on where it stood still: entropy, names
                                    ◀──  RESUMED
TIME                                ──▶  sets its clock, thaws its programs
                                    ◀──  READY
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rootdisk.errors import RootdiskError
from rootdisk.records import Record
from rootdisk.system import process
from rootdisk.text import describe_error
from runner.machine import qemu, qmp
from runner.machine.model import Machine, Vm
from runner.snapshot.convert import wait_loaded
from runner.store.store import Store
from runner.template import memory, orders
from runner.template.restore import end, is_lack, reason
from runner.template.saved import Template

TIMEOUT_S = 120.0  # of a busy host
CHECKED_MAX_BYTES = 1 << 30  # in use: of more, the digest would take longer than all else; `runner verify` compares it
_NAMES = ("hostname", "machine-id", "mac", "network", "resolv", "host")


def restore(
    store: Store,
    saved: Template,
    machine: Machine,
    folder: Path,
    user: process.User | None,
    settings: Sequence[Record],
    meanwhile: Callable[[], None] = lambda: None,
) -> Vm:
    """Start `machine` from the saved state; `settings` are the records of the new sandbox.

    If no other sandbox has the RAM in memory, it is compared with its digest while QEMU reads the state. This process holds the RAM until it ends.
    `meanwhile` is called while QEMU reads the state.

    Raises:
        RootdiskError: It cannot, and nothing is running.
    """
    deadline = time.monotonic() + TIMEOUT_S
    with open(os.memfd_create("rootdisk-state", os.MFD_CLOEXEC), "w+b", buffering=0) as file:
        vm: Vm | None = None
        monitor: qmp.Monitor | None = None

        def begin() -> None:
            """Have the machine read the state of its devices."""
            nonlocal monitor
            assert vm is not None
            monitor = _reading(vm, file.fileno(), deadline)

        try:
            file.write(saved.read_state())
            file.seek(0)
            is_checked = (saved.folder / "ram").stat().st_blocks * 512 <= CHECKED_MAX_BYTES
            loading = memory.loading(store, saved, TIMEOUT_S, is_checked=is_checked, when_filled=begin)
            with loading as ram:
                vm = qemu.start(machine, folder, user, qemu.Memory(ram, file.fileno()))
        except BaseException as err:
            how = end(vm, err) if vm is not None else ""
            if isinstance(err, OSError) and is_lack(err):
                raise RootdiskError(describe_error(err)) from err
            if isinstance(err, OSError | ValueError):
                raise RootdiskError(f"it is damaged: {describe_error(err)}") from err
            if isinstance(err, RootdiskError) and vm is not None:
                raise RootdiskError(reason(err, vm, how)) from err
            raise
        assert monitor is not None
        try:
            _go_on(vm, monitor, settings, deadline, meanwhile)
        except BaseException as err:
            how = end(vm, err)
            memory.withdraw(saved)
            os.close(ram)
            if isinstance(err, OSError | ValueError | RootdiskError):
                raise RootdiskError(reason(err, vm, how)) from err
            raise
    return vm


def _reading(vm: Vm, state: int, deadline: float) -> qmp.Monitor:
    """Have the machine read the state of its devices from a file, and return its monitor."""
    assert vm.monitor is not None
    monitor = qmp.Monitor(vm.monitor, deadline)
    monitor.ask("migrate-set-capabilities", **qmp.IGNORE_SHARED)
    monitor.ask("migrate-incoming", uri=f"fd:{state}")
    return monitor


def _go_on(
    vm: Vm, monitor: qmp.Monitor, settings: Sequence[Record], deadline: float, meanwhile: Callable[[], None]
) -> None:
    """Wait until the machine has read its state, and send it the orders. Return when the guest continues."""
    meanwhile()
    wait_loaded(monitor)
    vm.channel.sendall(orders.resume(record for record in settings if record[0] in _NAMES))
    monitor.ask("cont")
    orders.tell_time(vm.channel, orders.hear(vm.channel, deadline))
