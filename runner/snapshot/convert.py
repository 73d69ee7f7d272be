"""Turn the stream that a running machine was saved to into files that any number of sandboxes start from.

A sandbox's memory is its own, so QEMU writes it into the stream with the state of the devices. Sandboxes from one snapshot
share their memory until they write, so it has to be a file beside the state. QEMU itself converts it: a machine without disk and
network reads the stream, and is saved again, as a template is. It never runs. What it could not read could not be started.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from rootdisk.durable import atomic_write
from rootdisk.errors import RootdiskError
from rootdisk.system import process
from runner.machine import qemu, qmp
from runner.machine.model import Machine
from runner.template import make, restore

TIMEOUT_S = 600.0  # of much memory on a slow disk
_POLL_S = 0.002


def convert(
    machine: Machine, stream: Path, folder: Path, user: process.User | None
) -> tuple[tuple[int, str], tuple[int, str]]:
    """Write the RAM and the state of the machine saved in `stream` to the files ram and state in `folder`. Remove `stream`.

    Return sizes and digests, as of a template.

    Raises:
        RootdiskError: QEMU cannot read it.
        OSError: The files cannot be written.
    """
    deadline = time.monotonic() + TIMEOUT_S
    size = machine.memory_mib << 20
    with (
        open(os.memfd_create("rootdisk-snapshot", os.MFD_CLOEXEC), "r+b", buffering=0) as ram,
        stream.open("rb", buffering=0) as saved,
    ):
        os.ftruncate(ram.fileno(), size)
        memory = qemu.Memory(ram.fileno(), saved.fileno(), is_filled=True)
        vm = qemu.start(machine, folder, user, memory)
        try:
            assert vm.monitor is not None
            monitor = qmp.Monitor(vm.monitor, deadline)
            monitor.ask("migrate-incoming", uri=f"fd:{saved.fileno()}")
            wait_loaded(monitor)
            monitor.ask("migrate-set-capabilities", **qmp.IGNORE_SHARED)
            state = make.device_state(monitor, deadline)
        except RootdiskError as err:
            how = restore.end(vm, err)
            raise RootdiskError(restore.reason(err, vm, how)) from err
        except BaseException:
            vm.kill()
            raise
        vm.kill()
        saved.close()
        stream.unlink()  # the memory is not in the store twice
        digest = make.write_ram(ram.fileno(), folder / "ram", size)
    atomic_write(folder / "state", state, 0o600)
    return (size, digest), (len(state), hashlib.sha256(state).hexdigest())


def wait_loaded(monitor: qmp.Monitor) -> None:
    """Wait until a machine has read what it was saved as. RootdiskError if it cannot, or not in time."""
    while monitor.ask("query-status").get("status") == "inmigrate":
        time.sleep(_POLL_S)
