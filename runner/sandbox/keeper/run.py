"""Serve one run of a sandbox, from the start of its machine to the files that say how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.durable import atomic_write
from rootdisk.errors import RootdiskError
from rootdisk.system import process
from rootdisk.system.debug import debug
from runner.channel import messages
from runner.channel.messages import GuestError
from runner.machine import accelerator, console, tsc
from runner.machine.cgroup import Cgroup, NotDelegated
from runner.machine.model import Vm
from runner.sandbox.directory import CGROUP, Sandbox
from runner.sandbox.keeper.booting import start_machine
from runner.sandbox.keeper.ending import FAILED, KILLED, SPARE, TIMED_OUT, Ended, Gone, Silent, finish
from runner.sandbox.keeper.restart import Restarts
from runner.sandbox.prepare import PreparedSandbox
from runner.store.events import Events
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.sandbox.keeper.feed import Feed
    from runner.sandbox.keeper.loop import Keeper

# Of a program that cannot be executed, whose libraries cannot be loaded, or that was killed because it could not be read further.
_UNREADABLE = (126, 127, 128 + signal.SIGBUS)
_SPARE_BYTES = 16 << 10


def run(
    prepared: PreparedSandbox,
    store: Store,
    client: socket.socket,
    listener: socket.socket,
    counter: tsc.Counter,
    restarts: Restarts,
) -> tuple[Ended, float | None]:
    """Start the machine, serve it until it ends, and then keep or remove the sandbox.

    Return how it ended, and the seconds to wait before another start; None if its restart policy wants no other one.
    """
    machine_run = _Run(prepared, store)
    began = time.monotonic()  # the clock may jump
    machine_run.serve(client, listener, counter)
    keeper, ended = machine_run.keeper, machine_run.ended
    events, feed = machine_run.named.events, machine_run.named.feed
    events.tell("ended", status=ended.status, error=ended.error)
    if feed is not None:
        feed.close()
    # A program that could not be started at first is an error of `boot`.
    may_restart = keeper is not None and not ended.by and (keeper.has_started or restarts.has_begun)
    wait_s = restarts.wait_s(ended.status, time.monotonic() - began) if may_restart else None
    if wait_s is None:
        finish(prepared, ended)
    else:
        with contextlib.suppress(OSError):  # the disk may be full
            machine_run.write_state(status=ended.status, error=ended.error, ended=time.time())
        events.tell("restarting", status=ended.status, wait_ms=int(wait_s * 1000))
    if keeper is not None:
        keeper.tell(ended.status, ended.error)
        keeper.close()
    else:
        client.sendall(messages.frame(messages.ERROR, ended.error.encode()))
    return ended, wait_s


class _Run:
    """The machine of a sandbox, what serves it, and how it has ended."""

    def __init__(self, prepared: PreparedSandbox, store: Store) -> None:
        self._prepared, self._store = prepared, store
        self._sandbox = prepared.sandbox
        self._started = time.time()
        self._status, self._error = FAILED, ""
        self._vm: Vm | None = None
        self._cgroup: Cgroup | None = None
        self.keeper: Keeper | None = None
        self._reserved = contextlib.ExitStack()
        self._folder = _renamable(self._sandbox.folder, self._reserved)
        self.named = _Named(self._sandbox, prepared.events or Events(store.root, prepared.spec.name))

    @property
    def ended(self) -> Ended:
        """Return how the run has ended."""
        return Ended(self._started, self._status, self._error, self.keeper.ended_by if self.keeper is not None else "")

    def write_state(self, *, status: int | None = None, error: str = "", ended: float | None = None) -> None:
        """Write the state with the number of this process, by which the sandbox counts as running."""
        self._sandbox.write_state(pid=os.getpid(), started=self._started, status=status, error=error, ended=ended)

    def serve(self, client: socket.socket, listener: socket.socket, counter: tsc.Counter) -> None:
        """Start the machine and serve it. Afterwards it has ended."""
        try:
            self._serve(client, listener, counter)
        except Gone:
            self._status = KILLED
        except RootdiskError as err:
            lost = self.keeper.lost if self.keeper is not None else ""
            lost = lost or (self.named.feed.failure if self.named.feed is not None else "")
            self._error = lost or str(_explain(err, self._vm, self.keeper, self._folder))
        except OSError as err:
            self._error = f"{err.filename or 'the sandbox'}: {err.strerror}"
        if self._vm is not None:
            self._vm.kill()
        if self._cgroup is not None and (text := self._cgroup.oom_text):
            self._status, self._error = FAILED, text
        self._reserved.close()

    def _serve(self, client: socket.socket, listener: socket.socket, counter: tsc.Counter) -> None:
        prepared, store, spec = self._prepared, self._store, self._prepared.spec
        self._cgroup = self._make_cgroup()
        known_kvm, kernel = store.root / "kvm.json", prepared.artifact.booted_kernel
        chosen = accelerator.choose(spec.accelerator, prepared.artifact.config.platform, known_kvm, kernel)
        self._note_use(chosen)
        atomic_write(self._sandbox.folder / SPARE, bytes(_SPARE_BYTES), 0o600, durable=False)
        user = self._reserved.enter_context(process.unprivileged(store.root / "locks"))
        if prepared.served is not None:
            from runner.sandbox.keeper.feed import Feed

            self.named.feed = Feed(store, prepared.served, self._sandbox.folder)
        while True:
            vm, keeper = self._start(chosen, client, listener, counter, user)
            try:
                self._status = keeper.run()
                break
            except GuestError:
                if not self._has_lost_server():
                    raise
                vm.kill()  # its first connection was to a server that was killed; only later ones are made again
            except Silent:
                vm.kill()
                chosen = accelerator.Accelerator("tcg", "KVM exists, but no guest starts with it", True)
                self._note_use(chosen)
                accelerator.remember(known_kvm, kernel, False)
        if not chosen.known:
            accelerator.remember(known_kvm, kernel, True)
        self._end(vm, keeper)

    def _start(
        self,
        chosen: accelerator.Accelerator,
        client: socket.socket,
        listener: socket.socket,
        counter: tsc.Counter,
        user: process.User | None,
    ) -> tuple[Vm, Keeper]:
        """Start the machine, and prepare to serve it. What serves it is loaded while QEMU or the guest starts."""
        prepared, sandbox = self._prepared, self._sandbox
        debug(f"accelerator {chosen.name}: {chosen.reason}")
        self._vm, make_template = start_machine(
            prepared, self._store, chosen.name, counter, user, self.named.feed, self._cgroup, _load
        )
        from runner.sandbox.keeper.serving import make_keeper

        if sandbox.in_use.get("start") != "cold":
            self.write_state()
        self.keeper = make_keeper(
            prepared,
            self._store,
            self._vm,
            listener,
            client,
            self._folder,
            is_tried=chosen.known,
            on_ready=make_template,
            events=self.named.events,
            rename=self.named.rename,
            feed=self.named.feed,
        )
        self.named.events.tell("started", start=sandbox.in_use.get("start", "cold"), accelerator=chosen.name)
        return self._vm, self.keeper

    def _end(self, vm: Vm, keeper: Keeper) -> None:
        """Have the guest write back its data if the sandbox is kept. If it is not, the machine may end at once: its disk is deleted."""
        spec = self._prepared.spec
        is_kept = spec.keep or (spec.volumes and not keeper.lost)
        if is_kept and self._status not in (TIMED_OUT, KILLED) and not keeper.is_off:
            keeper.acknowledge()
            vm.wait(5)
        if keeper.lost:
            self._status, self._error = FAILED, keeper.lost
        elif self._status in _UNREADABLE and self.named.feed is not None and self.named.feed.failure:
            self._status, self._error = FAILED, self.named.feed.failure
        if self._status == TIMED_OUT and keeper.has_timed_out:
            keeper.say(f"--timeout: stopped after {spec.timeout_s:g} s")

    def _make_cgroup(self) -> Cgroup | None:
        """Make the cgroup of this run; None if there can be none."""
        try:
            cgroup = Cgroup.create()
        except NotDelegated as err:
            debug(f"no limits of this host: {err}")
            return None
        self._reserved.callback(cgroup.close)
        return cgroup

    def _has_lost_server(self) -> bool:
        """Return whether the server of the disk has ended before the guest's kernel said anything."""
        if self.named.feed is None or not self.named.feed.take_loss():
            return False
        return not (self._sandbox.folder / "console.log").stat().st_size

    def _note_use(self, chosen: accelerator.Accelerator) -> None:
        """Write down what this run actually uses, for `inspect`."""
        prepared = self._prepared
        method = "overlay" if prepared.disk.overlay else prepared.spec.clone or "copy"
        self._sandbox.in_use = {
            "accelerator": chosen.name,
            "accelerator_reason": chosen.reason,
            "clone": method,
            "start": "cold",
            **({CGROUP: str(self._cgroup.folder)} if self._cgroup is not None else {}),
        }
        self.write_state()


class _Named:
    """A sandbox by its present name, and what goes by that name: its events and the socket of its disk."""

    def __init__(self, sandbox: Sandbox, events: Events) -> None:
        self._sandbox = sandbox
        self.events = events
        self.feed: Feed | None = None

    def rename(self, name: str) -> Events:
        """Give the sandbox another name, and return its events by that name. BadInput if another sandbox has it."""
        before = self._sandbox.spec.name
        self._sandbox.move(name)
        process.retitle(f"runner: keeps {name}")
        if self.feed is not None:
            self.feed.path = self._sandbox.folder / self.feed.path.name
        self.events = self.events._replace(sandbox=name)
        self.events.tell("renamed", before=before)
        return self.events


def _renamable(folder: Path, stack: contextlib.ExitStack) -> Path:
    """Return a name for the sandbox's directory that stays right if the sandbox is renamed, until `stack` is closed."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return Path(f"/proc/self/fd/{fd}")


def _load() -> None:
    """Load what serves a machine."""
    import runner.sandbox.keeper.serving  # noqa: F401


def _explain(err: RootdiskError, vm: Vm | None, keeper: Keeper | None, folder: Path) -> RootdiskError:
    """Add the last lines of QEMU and the console to an error without a reason."""
    if err.message or vm is None:
        return err
    how = vm.wait(2)
    if keeper is not None and how is not None:
        keeper.output.drain()
    lines = console.tail(folder / "console.log")
    machine_lines = console.tail(folder / "machine.log")
    reason = (
        console.meaning(lines) or (machine_lines[-1] if machine_lines else how) or ("" if lines else console.NOTHING)
    )
    shown = "".join(f"\n  {line}" for line in console.telling(lines))
    what = f"the sandbox exited before its program reported a status{': ' + reason if reason else ''}"
    return RootdiskError(what, f"its console:{shown}" if shown else "")
