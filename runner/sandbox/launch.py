"""The way of a sandbox: directory, clone and slot; then its keeper, a process of its own, with the machine.

`create` and `reopen` prepare a sandbox, `launch` starts its keeper and carries the program's input and output, or
returns when the program has started. The keeper ends with the machine, whoever else is killed, and the machine with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from rootdisk import records
from rootdisk.artifact.format import SLOT_MAX_BYTES
from rootdisk.durable import atomic_write, read_file, socket_address
from rootdisk.errors import RootdiskError
from rootdisk.records import Record
from rootdisk.system import process
from rootdisk.system.debug import debug, is_shown
from runner.disk import slot
from runner.disk.clone import Clone, clone, found
from runner.machine import accelerator as accel
from runner.machine import resolver, tsc
from runner.machine.model import Forward, Machine, Share, Vm
from runner.sandbox import directory as sandbox
from runner.sandbox import guest_records
from runner.sandbox.directory import Sandbox, Spec, State
from runner.store.pull import StoredArtifact
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.channel.session import Session
    from runner.sandbox.keeper import Keeper

SILENT_S = 15.0  # how long a KVM nobody has tried yet may say nothing
FAILED = 125
MACHINE_LOG_BYTES = 1 << 20
STOPPED_S = 40.0  # after a signal: what the program, the guest and the keeper may take to end, and some more
_SPARE, _SPARE_BYTES = "spare", 16 << 10  # room for the last state on a disk that is full by then


class PreparedSandbox(NamedTuple):
    """A sandbox with its disk, not yet running."""

    sandbox: Sandbox
    local: StoredArtifact
    disk: Clone
    slot_digest: str
    spec: Spec  # of this run
    needs: str = ""  # options that an older init does not know


def create(store: Store, local: StoredArtifact, spec: Spec, given: Sequence[Record]) -> PreparedSandbox:
    """A new sandbox of `local`. RootdiskError, and nothing left, where it cannot be made."""
    made = Sandbox.create(store, spec)
    try:
        own = (*given, ("machine-id", os.urandom(16).hex().encode()), ("first", b"1"))
        atomic_write(made.folder / "records", records.pack(own), 0o600, durable=spec.keep)
        extent = local.config.slot()
        filled = slot.pack(_all_records(own, spec), extent.length)
        patches = slot.clusters(extent, filled)
        if spec.disk_size != local.config.disk_size:
            from runner.disk import grow  # seldom needed

            patches = {**grow.patches(local.disk, spec.disk_size), **patches}
        disk = clone(local.disk, spec.disk_size, made.folder, spec.clone, patches)
        slot.write(disk.path, extent, filled, made.folder / "slot.json", overlay=disk.overlay, durable=spec.keep)
        made.take_name()
        disk = disk._replace(path=made.folder / disk.path.name)
        return PreparedSandbox(made, local, disk, filled.digest, spec, guest_records.needed(own))
    except BaseException:
        made.remove()
        raise


def reopen(
    store: Store, state: State, run: Spec | None = None, instead: Sequence[Record] | None = None
) -> PreparedSandbox:
    """A kept sandbox that does not run, with its slot written again.

    With `run` and `instead`, this run alone has that specification, and these records in place of the sandbox's own.
    Busy where it runs; RootdiskError where its base is not in the store any more, or its slot is not as it was left.
    """
    for place, _, _ in (run or state.spec).volumes:
        from runner.machine import virtiofsd

        virtiofsd.check(Path(place))
    opened = Sandbox.open(state)
    try:
        local = StoredArtifact.kept(store, state.spec)
        path = opened.folder / "records"
        own = [record for record in _records(path, state) if record[0] != "first"]
        atomic_write(path, records.pack(own), 0o600)
        extent = local.config.slot()
        told = own if instead is None else instead
        filled = slot.pack(_all_records(told, run or state.spec), extent.length)
        disk = found(opened.folder)
        slot.rewrite(disk.path, extent, filled, opened.folder / "slot.json", overlay=disk.overlay)
        return PreparedSandbox(opened, local, disk, filled.digest, run or state.spec, guest_records.needed(told))
    except BaseException:
        opened.release()
        raise


def _records(path: Path, state: State) -> list[Record]:
    """What a kept sandbox is told at each start."""
    try:
        return records.unpack(read_file(path, SLOT_MAX_BYTES))
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        hint = "its disk can still be read with imagetool"
        raise RootdiskError(f"sandbox {state.name} cannot start: its file `records`: {why}", hint) from err


def _all_records(own: Sequence[Record], spec: Spec) -> list[Record]:
    """Return what a guest is told: what is kept, and what is new at every start."""
    names = resolver.records(spec.network, own, resolver.Resolver.of_host())
    return guest_records.in_order([*own, *_of_this_start(spec), *names])


def _of_this_start(spec: Spec) -> list[Record]:
    """What a guest is told anew at every start."""
    found = [
        ("entropy", os.urandom(64).hex().encode()),
        ("time", f"{time.time():.3f}".encode()),
        ("network", spec.network.encode()),
    ]
    found += [("stdin", b"1")] if spec.interactive else []
    found += [("tty", b"1")] if spec.terminal else []
    for share in _shares(spec):
        found.append(("mount", os.fsencode(f"{share.tag}\t{share.guest}\t{'ro' if share.read_only else 'rw'}")))
    return found


def _shares(spec: Spec) -> tuple[Share, ...]:
    return tuple(
        Share(f"volume{n}", Path(path), guest, read_only, frozenset(r for g, r in spec.volume_rights if g == guest))
        for n, (path, guest, read_only) in enumerate(spec.volumes)
    )


def launch(prepared: PreparedSandbox, store: Store, counter: tsc.Counter) -> int:
    """Start the keeper. In the foreground the program's exit status, when all is over; detached 0, when it has started.

    RootdiskError with the guest's or the console's reason where the sandbox fails.
    """
    spec = prepared.spec
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = socket.socketpair()
    listener = _listener(prepared.sandbox.folder)
    pid = os.fork()
    if not pid:
        ours.close()
        _keep(prepared, store, theirs, listener, counter)
    theirs.close()
    listener.close()
    prepared.sandbox.release()
    prepared.local.release()
    from runner.channel.session import Lost, Session, raw_terminal  # loaded while the guest starts

    session = Session(ours)
    stopped: list[int] = []  # signals that came before the program had started
    try:
        with ours:
            if spec.detached:
                return _started(session)
            stdin = 0 if spec.interactive else None
            with contextlib.ExitStack() as terminal:
                # Until there is a program to get it, Ctrl-C is a signal to us: the guest may never start.
                status = session.run(
                    stdin=stdin,
                    terminal=spec.terminal,
                    on_ready=lambda: terminal.enter_context(raw_terminal(spec.terminal and spec.interactive)),
                    on_signal=lambda number: _hand_on(session, number, stopped),
                    patience_s=STOPPED_S,
                    is_main=True,
                )
            return 128 + stopped[0] if stopped and not session.is_ready else status
    except Lost as err:
        os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            sandbox.discard(prepared.sandbox.folder)
        raise RootdiskError("the sandbox's keeper was killed", "its machine ended with it") from err


def _listener(folder: Path) -> socket.socket:
    """The control socket."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(folder, "control") as address:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        listener.bind(address)
        listener.listen(256)
    return listener


def _started(session: Session) -> int:
    """Wait until the program has started; its status where it has ended by then."""
    from runner.channel.session import Lost

    started = []
    try:
        return session.run(stdin=None, terminal=False, on_ready=lambda: started.append(1), on_signal=None)
    except Lost:
        if not started:
            raise
        return 0


def _hand_on(session: Session, number: int, stopped: list[int]) -> None:
    """A signal to the client is one to the program; SIGTERM is the one that its image wants, and SIGKILL after a while.

    So is what should end a program that has not started yet.
    """
    from runner.channel import messages
    from runner.sandbox.keeper import STOP_S

    if number in (signal.SIGTERM, signal.SIGINT) and not session.is_ready:
        stopped.append(number)
    if number == signal.SIGTERM or (number == signal.SIGINT and not session.is_ready):
        session.send(messages.STOP, STOP_S.to_bytes(4, "little"))
    else:
        session.send_signal(number)


def _keep(
    prepared: PreparedSandbox, store: Store, client: socket.socket, listener: socket.socket, counter: tsc.Counter
) -> NoReturn:
    """The keeper's process, which never returns."""
    status = 1
    try:
        kept = prepared.sandbox
        quiet = not is_shown() or kept.spec.detached
        keep = {client.fileno(), listener.fileno(), kept.lock, *prepared.local.lease}
        process.detach(keep, kept.folder / "keeper.log" if quiet else None)
        process.retitle(f"runner: keeps {kept.spec.name}")
        _run(prepared, store, client, listener, counter)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _run(
    prepared: PreparedSandbox, store: Store, client: socket.socket, listener: socket.socket, counter: tsc.Counter
) -> None:
    """Start the machine, carry everything until it has ended, leave the sandbox as its user wants it."""
    from runner.sandbox.keeper import KILLED, TIMED_OUT, Gone, Keeper, Silent
    from runner.sandbox.logs import Log
    from runner.sandbox.room import Room

    kept = prepared.sandbox
    spec, folder = prepared.spec, kept.folder
    started = time.time()
    status, error = FAILED, ""
    keeper = vm = None
    reserved = contextlib.ExitStack()
    try:
        platform = prepared.local.config.platform
        chosen = accel.choose(spec.accelerator, platform, store.root / "kvm.json", prepared.local.kernel)
        kept.in_use = _in_use(prepared, chosen)
        kept.write_state(pid=os.getpid(), started=started)
        atomic_write(folder / _SPARE, bytes(_SPARE_BYTES), 0o600, durable=False)
        user = reserved.enter_context(process.unprivileged(store.root / "locks"))
        while True:
            debug(f"accelerator {chosen.name}: {chosen.reason}")
            vm = _start(prepared, store, chosen.name, counter, user)
            keeper = Keeper(
                vm,
                listener,
                client,
                Log(folder / "console.log"),
                Log(folder / "output.log") if spec.detached else None,
                timeout_s=spec.timeout_s,
                silent_s=None if chosen.known else SILENT_S,
                logs={out: Log(folder / name, MACHINE_LOG_BYTES) for name, out in vm.talk.items()},
                room=Room(folder, spec.memory_mib << 20),
                needs=prepared.needs,
            )
            try:
                status = keeper.run()
                break
            except Silent:
                vm.kill()
                chosen = accel.Accelerator("tcg", "KVM is there, and runs no guest", True)
                kept.in_use = _in_use(prepared, chosen)
                kept.write_state(pid=os.getpid(), started=started)
                accel.remember(store.root / "kvm.json", prepared.local.kernel, False)
        if not chosen.known:
            accel.remember(store.root / "kvm.json", prepared.local.kernel, True)
        # Without anything to keep, the machine ends at once: its disk is thrown away.
        if (
            (spec.keep or (spec.volumes and not keeper.lost))
            and status not in (TIMED_OUT, KILLED)
            and not keeper.is_off
        ):
            keeper.acknowledge()
            vm.wait(5)
        if keeper.lost:
            status, error = FAILED, keeper.lost
        if status == TIMED_OUT and keeper.has_timed_out:
            keeper.say(f"--timeout: stopped after {spec.timeout_s:g} s")
    except Gone:
        status = KILLED
    except RootdiskError as err:
        error = (keeper.lost if keeper is not None else "") or str(_explained(err, vm, keeper, folder))
    except OSError as err:
        error = f"{err.filename or 'the sandbox'}: {err.strerror}"
    if vm is not None:
        vm.kill()
    reserved.close()
    if spec.keep:
        for name in ("control", _SPARE):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)
        try:
            kept.write_state(started=started, status=status, error=error)
        except OSError as err:  # it is listed as cut off then
            print(f"state.json: {err.strerror}", file=sys.stderr)
    else:
        kept.remove()
    kept.release()
    prepared.local.release()
    if keeper is not None:
        keeper.tell(status, error)
        keeper.close()
    else:
        from runner.channel import messages

        client.sendall(messages.frame(messages.ERROR, error.encode()))


def _in_use(prepared: PreparedSandbox, chosen: accel.Accelerator) -> dict[str, str]:
    """What this run really has, for `inspect`."""
    copied = "overlay" if prepared.disk.overlay else prepared.spec.clone or "copy"
    return {"accelerator": chosen.name, "accelerator_reason": chosen.reason, "clone": copied}


def _start(
    prepared: PreparedSandbox, store: Store, accelerator: str, counter: tsc.Counter, user: process.User | None
) -> Vm:
    """The machine, by the back end that was asked for."""
    spec, local, folder = prepared.spec, prepared.local, prepared.sandbox.folder
    words = [local.config.cmdline, f"rootdisk.slot={prepared.slot_digest}"]
    if accelerator == "tcg" and local.config.platform.architecture == "amd64" and (khz := counter.khz()):
        words.append(f"tsc_early_khz={khz}")
    if is_shown():
        words.append("rootdisk.debug=1")
    machine = Machine(
        local.config.platform,
        accelerator,
        spec.memory_mib,
        spec.cpus,
        local.kernel,
        local.initramfs,
        " ".join(words),
        prepared.slot_digest,
        prepared.disk.path,
        prepared.disk.form,
        spec.disk_size,
        local.disk if prepared.disk.overlay else None,
        spec.keep,
        spec.network,
        tuple(Forward(*forward) for forward in spec.forwards),
        _shares(spec),
    )
    if spec.backend == "krun":
        from runner.machine import krun

        return krun.start(machine, user)
    from runner.machine import qemu

    kind = qemu.kind(local.config.platform, store.root / "qemu.json")
    return qemu.start(machine._replace(kind=kind), folder, user)


def _explained(err: RootdiskError, vm: Vm | None, keeper: Keeper | None, folder: Path) -> RootdiskError:
    """The error with what QEMU and the console say, where the guest said nothing."""
    from runner.machine import console

    if err.message or vm is None:
        return err
    how = vm.wait(2)
    if keeper is not None and how is not None:
        keeper.drain()
    lines = console.tail(folder / "console.log")
    complaint = console.tail(folder / "machine.log")
    reason = console.meaning(lines) or (complaint[-1] if complaint else how) or ("" if lines else console.NOTHING)
    shown = "".join(f"\n  {line}" for line in console.telling(lines))
    what = f"the sandbox exited before its program reported a status{': ' + reason if reason else ''}"
    return RootdiskError(what, f"its console:{shown}" if shown else "")
