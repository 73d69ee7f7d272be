"""Start a machine from a snapshot: as from a template, but its programs run already and have to be told that they are others.

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
from collections.abc import Sequence
from pathlib import Path

from rootdisk import records
from rootdisk.errors import RootdiskError
from rootdisk.records import Record
from rootdisk.system import process
from rootdisk.text import describe_error
from runner.channel import messages
from runner.machine import qemu, qmp
from runner.machine.model import Machine, Vm
from runner.snapshot.convert import wait_loaded
from runner.store.store import Store
from runner.template import memory
from runner.template.restore import ENTROPY_BYTES, reason, tell_time
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
) -> Vm:
    """Start `machine` from what was saved; `settings` are the records of the new sandbox.

    If no other sandbox has the RAM in memory, it is compared with its digest while QEMU starts. This process holds the RAM until it ends.

    Raises:
        RootdiskError: It cannot, and nothing is running.
    """
    deadline = time.monotonic() + TIMEOUT_S
    with open(os.memfd_create("rootdisk-state", os.MFD_CLOEXEC), "w+b", buffering=0) as file:
        vm = None
        try:
            file.write(saved.read_state())
            file.seek(0)
            is_checked = (saved.folder / "ram").stat().st_blocks * 512 <= CHECKED_MAX_BYTES
            with memory.loading(store, saved, TIMEOUT_S, is_checked=is_checked) as ram:
                vm = qemu.start(machine, folder, user, qemu.Memory(ram, file.fileno()))
        except BaseException as err:
            if vm is not None:
                vm.kill()
            if isinstance(err, OSError | ValueError):
                raise RootdiskError(f"it is damaged: {describe_error(err)}") from err
            raise
        try:
            _go_on(vm, file.fileno(), settings, deadline)
        except BaseException as err:
            vm.kill()
            memory.withdraw(saved)
            os.close(ram)
            if isinstance(err, OSError | ValueError | RootdiskError):
                raise RootdiskError(reason(err, vm)) from err
            raise
    return vm


def _go_on(vm: Vm, state: int, settings: Sequence[Record], deadline: float) -> None:
    """Have the machine read its state, and give it the orders. Return when the guest goes on."""
    assert vm.monitor is not None
    monitor = qmp.Monitor(vm.monitor, deadline)
    monitor.ask("migrate-set-capabilities", **qmp.IGNORE_SHARED)
    monitor.ask("migrate-incoming", uri=f"fd:{state}")
    wait_loaded(monitor)
    orders = [("entropy", os.urandom(ENTROPY_BYTES).hex().encode())]
    orders += [record for record in settings if record[0] in _NAMES]
    vm.channel.sendall(messages.frame(messages.RESUME, records.pack(orders)))
    monitor.ask("cont")
    answer = bytearray()
    while len(answer) < messages.HEADER.size:
        vm.channel.settimeout(max(deadline - time.monotonic(), 0.001))
        received = vm.channel.recv(messages.HEADER.size - len(answer))
        if not received:
            raise ValueError("the machine has ended")
        answer += received
    tell_time(vm, answer)
