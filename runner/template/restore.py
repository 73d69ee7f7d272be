"""Start a machine from a template: QEMU reads the saved state, and the guest's init is told what is different.

    keeper                                   QEMU and guest
    start, with the sealed RAM          ──▶  waits for its state
    state through a pipe, RESUME        ──▶  the guest goes on where it was saved: it adds the entropy to its random pool
                                        ◀──  RESUMED; gives disk and network to their drivers
    TIME                                ──▶  sets its clock, mounts the disk

From here on, all is as after a cold boot. Until RESUMED the guest has not touched the disk, so a failure up to there is
followed by a cold boot.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.errors import RootdiskError
from rootdisk.records import Record
from rootdisk.system import process
from rootdisk.system.debug import is_shown
from rootdisk.text import describe_error, printable
from runner.channel import messages
from runner.machine import qemu, qmp
from runner.machine.model import Machine, Vm
from runner.store.store import Store
from runner.template import memory, orders, saved
from runner.template.saved import Template

if TYPE_CHECKING:
    from runner.sandbox.keeper.feed import Feed

TIMEOUT_S = 30.0  # of a busy host; a quiet one takes a tenth of a second
KILLED = signal.SIGKILL.name
_ENDED_S = 0.2  # from the end of QEMU's sockets to its own
_LACKS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOSPC)
_PIPE_BYTES = 1 << 20
_SAID_BYTES = 64 << 10


class NotRestored(Exception):
    """A machine that could not start from its template; the text says why.

    `is_late` and `is_lack` mean that it had no time, or no memory, to start: the template may be good. One that always takes
    too long is not to be tried again and again.
    """

    def __init__(self, why: str, *, is_late: bool = False, is_lack: bool = False) -> None:
        super().__init__(why)
        self.is_late, self.is_lack = is_late, is_lack


def restore(
    store: Store,
    template: Template,
    machine: Machine,
    folder: Path,
    user: process.User | None,
    feed: Feed | None = None,
    timeout_s: float = TIMEOUT_S,
    meanwhile: Callable[[], None] = lambda: None,
) -> Vm:
    """Start `machine` from `template`. It uses the same sockets in `folder` and the same `user` as after a cold boot.

    QEMU begins by reading its disk. If that is not complete, it waits for what serves it: `feed`. This process holds
    the RAM of the template until it ends. `meanwhile` is called while QEMU reads the state.

    Raises:
        NotRestored: It cannot, and nothing is running. Its disk was not touched.
        RootdiskError: As `qemu.start`: a cold boot would fail too.
    """
    deadline = time.monotonic() + timeout_s
    reader, writer = os.pipe()
    vm, is_starting = None, False
    with open(reader, "rb", buffering=0) as state_pipe, open(writer, "wb", buffering=0) as pipe:
        try:
            state = template.read_state()
            with memory.loading(store, template) as ram:
                is_starting = True
                vm = qemu.start(machine, folder, user, qemu.Memory(ram, reader))
        except BaseException as err:
            if vm is not None:
                vm.kill()
            elif is_starting:
                raise  # a cold boot would fail too
            if isinstance(err, OSError | ValueError | RootdiskError):
                raise NotRestored(describe_error(err), is_lack=is_lack(err)) from err
            raise
        state_pipe.close()
        try:
            _go_on(vm, machine, pipe.fileno(), reader, state, deadline, feed, meanwhile)
        except BaseException as err:
            how, is_late = end(vm, err), isinstance(err, TimeoutError)
            memory.withdraw(template)
            os.close(ram)
            if isinstance(err, OSError | ValueError | RootdiskError):
                raise NotRestored(reason(err, vm, how), is_late=is_late, is_lack=KILLED in how or is_lack(err)) from err
            raise
    template.note_use()
    saved.forget_failures(store, template.folder.name)
    return vm


def _go_on(
    vm: Vm,
    machine: Machine,
    pipe: int,
    reader: int,
    state: bytes,
    deadline: float,
    feed: Feed | None,
    meanwhile: Callable[[], None],
) -> None:
    """Send the state and the orders. Return when the guest continues."""
    assert vm.monitor is not None
    with contextlib.suppress(OSError):  # a smaller pipe does too
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    os.set_blocking(pipe, False)
    # The answers are not waited for: if QEMU refuses, it ends, or the time is over.
    vm.monitor.sendall(
        qmp.order("qmp_capabilities")
        + qmp.order("migrate-set-capabilities", **qmp.IGNORE_SHARED)
        + qmp.order("migrate-incoming", uri=f"fd:{reader}")
    )
    vm.channel.sendall(orders.resume(_differences(machine)))
    answer, left = bytearray(), memoryview(state)
    with contextlib.suppress(BlockingIOError):  # a smaller pipe takes the rest later
        left = left[os.write(pipe, left[:_PIPE_BYTES]) :]
    meanwhile()
    poll = select.poll()
    poll.register(vm.channel, select.POLLIN)
    if left:
        poll.register(pipe, select.POLLOUT)
    if feed is not None:
        poll.register(feed.listener, select.POLLIN)
    while len(answer) < messages.HEADER.size:
        wait_s = deadline - time.monotonic()
        if wait_s <= 0:
            raise TimeoutError("the machine did not go on in time")
        for fd, _ in poll.poll(wait_s * 1000):
            if fd == pipe:
                left = left[os.write(pipe, left[:_PIPE_BYTES]) :]
                if not left:
                    poll.unregister(pipe)
            elif feed is not None and fd == feed.listener.fileno():
                feed.accept()
                feed.connect()
            else:
                received = vm.channel.recv(messages.HEADER.size - len(answer))
                if not received:
                    raise ValueError("the machine has ended")
                answer += received
    orders.tell_time(vm.channel, answer)


def _differences(machine: Machine) -> list[Record]:
    """Return what differs between sandboxes."""
    differences = [("slot", machine.slot_digest.encode())]
    differences += [("verity", machine.verity_words.encode())] if machine.verity_words else []
    differences += [("debug", b"1")] if is_shown() else []
    return differences


def is_lack(err: BaseException) -> bool:
    """Return whether the host had no memory or descriptors."""
    return isinstance(err, OSError) and err.errno in _LACKS


def end(vm: Vm, err: BaseException) -> str:
    """End a machine that has not started because of `err`. Return how QEMU has ended before, as text; "" if it ran."""
    is_broken = not isinstance(err, TimeoutError) and isinstance(err, OSError | ValueError | RootdiskError)
    how = vm.wait(_ENDED_S if is_broken else 0)
    vm.kill()
    return how or ""


def reason(err: BaseException, vm: Vm, how: str) -> str:
    """Return why, with the last words of QEMU. That it was killed says more than that its socket is closed."""
    if KILLED in how:
        return f"QEMU: {how}"
    said = b""
    if vm.process.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            said = vm.process.stdout.read(_SAID_BYTES) or b""
    last = [line for line in said.splitlines() if line][-1:]
    return ": ".join([str(err), *(printable(line, 300) for line in last)])
