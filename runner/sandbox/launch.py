"""Start a sandbox: directory, clone and slot, then the keeper process with the machine.

`create` and `reopen` prepare a sandbox. `launch` starts its keeper; then it forwards input and output of the program, or
returns when the program of a detached sandbox has started. Keeper and machine end together, even if other processes are
killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from rootdisk import records
from rootdisk.durable import atomic_write, open_file, socket_address
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.records import Record
from rootdisk.system import process
from rootdisk.system.debug import debug, is_shown
from rootdisk.text import describe_error
from runner.disk import slot
from runner.disk.clone import Clone, clone, existing
from runner.machine import accelerator, tsc
from runner.machine.model import Vm
from runner.sandbox import guest_records
from runner.sandbox.booting import start_machine
from runner.sandbox.directory import Sandbox, Spec, State, discard, read
from runner.sandbox.restart import Policy, Restarts, nobody, rest
from runner.sandbox.state import BY_USER
from runner.store.events import Events
from runner.store.limits import Limits
from runner.store.pull import StoredArtifact
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.channel.session import Session
    from runner.lazy.served import ServedDisk
    from runner.network.proxy import Proxy
    from runner.network.secrets import Secrets
    from runner.sandbox.keeper import Keeper
    from runner.sandbox.snapshots import Snapshot

SILENT_S = 15.0  # how long an untried KVM may give no sign of a guest
FAILED = 125
MACHINE_LOG_BYTES = 1 << 20
STOPPED_S = 40.0  # time after a signal for program, guest and keeper to end, with a margin
_SPARE, _SPARE_BYTES = "spare", 16 << 10  # reserved space for the last state, in case the disk is full


class PreparedSandbox(NamedTuple):
    """A sandbox with its disk, ready to start."""

    sandbox: Sandbox
    artifact: StoredArtifact
    disk: Clone
    slot_digest: str
    spec: Spec  # of this run
    needs: str = ""  # options that an older init does not support
    is_read_only: bool = False
    events: Events | None = None
    is_tied: bool = False  # it ends with the connection of its main client, even if its output goes to a log
    ipv6: bool = False  # whether the guest has IPv6, for a name server
    hosts: tuple[bytes, ...] = ()  # of --add-host
    served: ServedDisk | None = None  # the base, if it is not complete
    is_quiet: bool = False  # no progress is shown
    secrets: Secrets | None = None
    snapshot: Snapshot | None = None  # its programs go on from this one, in place of a boot
    settings: tuple[Record, ...] = ()  # for a guest that goes on from a snapshot


def create(store: Store, artifact: StoredArtifact, spec: Spec, settings: Sequence[Record]) -> PreparedSandbox:
    """Create a sandbox from an artifact. `settings` are records for its slot.

    Raises:
        RootdiskError: It cannot be created; nothing is left of it.
    """
    is_read_only = any(key == "read-only" for key, _ in settings)
    if is_read_only and spec.verity and spec.disk_size != artifact.config.disk_size:
        raise BadInput(
            "--disk-size with --read-only: dm-verity checks the disk as it was built", "leave out one of the two"
        )
    secrets = read_secrets(spec, settings)
    sandbox = Sandbox.create(store, spec)
    served = None
    try:
        served = _served(store, artifact, spec)
        kept_records = (*settings, *guest_records.identity(), ("first", b"1"))
        atomic_write(sandbox.folder / "records", records.pack(kept_records), 0o600, durable=spec.keep)
        extent = artifact.config.slot()
        slot_records = guest_records.complete(kept_records, spec, secrets)
        filled = slot.pack(slot_records, extent.length)
        patches = slot.clusters(extent, filled)
        if spec.disk_size != artifact.config.disk_size:
            from runner.disk import grow  # seldom needed

            patches = {**grow.patches(artifact.disk, spec.disk_size, served), **patches}
        disk = clone(artifact.disk, spec.disk_size, sandbox.folder, spec.clone, patches, served)
        slot.write(disk.path, extent, filled, sandbox.folder / "slot.json", overlay=disk.overlay, durable=spec.keep)
        sandbox.take_name()
        disk = disk._replace(path=sandbox.folder / disk.path.name)
        needs, ipv6 = guest_records.needed(kept_records), guest_records.has_ipv6(slot_records)
        hosts = guest_records.hosts(kept_records)
        return PreparedSandbox(
            sandbox,
            artifact,
            disk,
            filled.digest,
            spec,
            needs,
            is_read_only,
            ipv6=ipv6,
            hosts=hosts,
            served=served,
            secrets=secrets,
        )
    except BaseException:
        sandbox.remove()
        if served is not None:
            served.close()
        raise


def read_secrets(spec: Spec, settings: Sequence[Record]) -> Secrets | None:
    """Read the secrets of a sandbox; RootdiskError if a source has none."""
    if not spec.secrets:
        return None
    from runner.sandbox.secrets import read  # with the maker of certificates, which no other sandbox needs

    return read(spec.secrets, settings)


def _served(store: Store, artifact: StoredArtifact, spec: Spec) -> ServedDisk | None:
    """Connect to the server of a disk that is not complete; None if it is complete.

    Raises:
        BadInput: The sandbox needs a complete disk.
    """
    if artifact.source is None:
        return None
    if spec.backend == "krun":
        raise BadInput("libkrun reads complete disks only", "use --pull missing, or --backend qemu")
    if spec.clone not in (None, "overlay"):
        raise BadInput(f"--clone {spec.clone} copies complete disks only", "use --pull missing, or omit --clone")
    from runner.lazy.served import ServedDisk

    return ServedDisk(store, artifact.source)


def reopen(
    store: Store, state: State, run: Spec | None = None, replacement: Sequence[Record] | None = None
) -> PreparedSandbox:
    """Prepare a kept sandbox to start again, with a new slot.

    `run` and `replacement` are the specification and the records of this run only, instead of the kept ones.

    Raises:
        Busy: It runs.
        RootdiskError: Its artifact is no longer in the store, or its slot has changed.
    """
    for place, _, _ in (run or state.spec).volumes:
        from runner.machine import virtiofsd

        virtiofsd.check(Path(place))
    sandbox = Sandbox.open(state)
    try:
        return _prepare_again(store, sandbox, state, run, replacement)
    except BaseException:
        sandbox.release()
        raise


def _prepare_again(
    store: Store,
    sandbox: Sandbox,
    state: State,
    run: Spec | None = None,
    replacement: Sequence[Record] | None = None,
    secrets: Secrets | None = None,
) -> PreparedSandbox:
    """Prepare a kept sandbox that this process has locked; see `reopen`. `secrets` are those of its last run, if it had one."""
    artifact = StoredArtifact.kept(store, state.spec)
    try:
        kept_records = [record for record in guest_records.records_of(state) if record[0] != "first"]
        atomic_write(sandbox.folder / "records", records.pack(kept_records), 0o600)
        extent = artifact.config.slot()
        settings = kept_records if replacement is None else replacement
        secrets = secrets or read_secrets(run or state.spec, settings)
        slot_records = guest_records.complete(settings, run or state.spec, secrets)
        filled = slot.pack(slot_records, extent.length)
        disk = existing(sandbox.folder)
        slot.rewrite(disk.path, extent, filled, sandbox.folder / "slot.json", overlay=disk.overlay)
        needs, ipv6 = guest_records.needed(settings), guest_records.has_ipv6(slot_records)
        is_read_only = any(key == "read-only" for key, _ in settings)
        served = _served(store, artifact, state.spec)
        hosts = guest_records.hosts(settings)
        return PreparedSandbox(
            sandbox,
            artifact,
            disk,
            filled.digest,
            run or state.spec,
            needs,
            is_read_only,
            ipv6=ipv6,
            hosts=hosts,
            served=served,
            secrets=secrets,
        )
    except BaseException:
        artifact.release()
        raise


def launch(prepared: PreparedSandbox, store: Store, counter: tsc.Counter) -> int:
    """Start the keeper. Return the exit status of the program, or 0 when a detached program has started.

    Raises:
        RootdiskError: The sandbox has failed, with the reason of the guest or the console.
    """
    spec = prepared.spec
    ours, pid = begin(prepared, store, counter)
    from runner.channel.session import Lost, Session  # loaded while the guest starts

    session = Session(ours)
    stopped: list[int] = []  # signals that came before the program had started
    try:
        with ours:
            if spec.detached:
                return _started(session)
            stdin = 0 if spec.interactive else None
            with contextlib.ExitStack() as terminal:
                end_progress = _shown_fill(prepared, terminal)
                # Before the program has started, Ctrl-C must be a signal to us: the guest may never start.
                status = session.run(
                    stdin=stdin,
                    terminal=spec.terminal,
                    on_ready=lambda: _ready(end_progress, terminal, raw=spec.terminal and spec.interactive),
                    on_signal=lambda number: _forward_signal(session, number, stopped),
                    patience_s=STOPPED_S,
                    is_main=True,
                )
            return 128 + stopped[0] if stopped and not session.is_ready else status
    except Lost as err:
        os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            discard(prepared.sandbox.folder)
        raise RootdiskError("the sandbox's keeper was killed", "its machine ended with it") from err


def _shown_fill(prepared: PreparedSandbox, stack: contextlib.ExitStack) -> Callable[[], None]:
    """Show how far the disk is fetched until the function that is returned is called."""
    if prepared.served is None or prepared.is_quiet:
        return lambda: None
    from runner.lazy.shown import shown_fill

    return stack.enter_context(shown_fill(prepared.served))


def _ready(end_progress: Callable[[], None], stack: contextlib.ExitStack, *, raw: bool) -> None:
    """Leave the terminal to the program."""
    from runner.channel.session import raw_terminal

    end_progress()
    stack.enter_context(raw_terminal(raw))


def begin(prepared: PreparedSandbox, store: Store, counter: tsc.Counter) -> tuple[socket.socket, int]:
    """Start the keeper. Return the connection of its main client, and its process number."""
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = socket.socketpair()
    listener = listen(prepared.sandbox.folder)
    pid = os.fork()
    if not pid:
        ours.close()
        keep(prepared, store, theirs, listener, counter)
    theirs.close()
    listener.close()
    prepared.sandbox.release()
    prepared.artifact.release()
    if prepared.served is not None:
        prepared.served.close()
    return ours, pid


def listen(folder: Path) -> socket.socket:
    """Create the control socket in `folder`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(folder, "control") as address:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        listener.bind(address)
        listener.listen(256)
    return listener


def _started(session: Session) -> int:
    """Wait until the program has started. Return 0, or its exit status if it has ended already."""
    from runner.channel.session import Lost

    started = []
    try:
        return session.run(stdin=None, terminal=False, on_ready=lambda: started.append(1), on_signal=None)
    except Lost:
        if not started:
            raise
        return 0


def _forward_signal(session: Session, number: int, stopped: list[int]) -> None:
    """Forward a signal to the program. SIGTERM becomes the stop signal of its image, followed by SIGKILL.

    SIGINT does so too while the program has not started. A stop before the start is added to `stopped`.
    """
    from runner.channel import messages
    from runner.sandbox.keeper import STOP_S

    if number in (signal.SIGTERM, signal.SIGINT) and not session.is_ready:
        stopped.append(number)
    if number == signal.SIGTERM or (number == signal.SIGINT and not session.is_ready):
        session.send(messages.STOP, STOP_S.to_bytes(4, "little"))
    else:
        session.send_signal(number)


def keep(
    prepared: PreparedSandbox, store: Store, client: socket.socket, listener: socket.socket, counter: tsc.Counter
) -> NoReturn:
    """Be the keeper process. Never returns."""
    status = 1
    try:
        sandbox = prepared.sandbox
        is_quiet = not is_shown() or sandbox.spec.detached
        fds = {client.fileno(), listener.fileno(), sandbox.lock, *prepared.artifact.lease}
        if prepared.events is not None and prepared.events.fd is not None:
            fds.add(prepared.events.fd)
        if prepared.served is not None:
            fds |= set(prepared.served.fds)
        process.detach(fds, sandbox.folder / "keeper.log" if is_quiet else None)
        process.retitle(f"runner: keeps {sandbox.spec.name}")
        for name in prepared.secrets.variables if prepared.secrets is not None else ():
            os.environ.pop(name, None)  # QEMU and other programs of the keeper do not get it
        restarts = Restarts(Policy.parse(sandbox.spec.restart if sandbox.spec.detached else "no"))
        while (again := _run(prepared, store, client, listener, counter, restarts)) is not None:
            prepared, client = again, nobody()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _run(
    prepared: PreparedSandbox,
    store: Store,
    client: socket.socket,
    listener: socket.socket,
    counter: tsc.Counter,
    restarts: Restarts,
) -> PreparedSandbox | None:
    """Start the machine, serve it until it ends, and then keep or remove the sandbox.

    Return it prepared for another start if its restart policy says so, after the wait before that.
    """
    from runner.channel.messages import GuestError
    from runner.sandbox.keeper import KILLED, TIMED_OUT, Gone, Keeper, Silent
    from runner.sandbox.logs import Log
    from runner.sandbox.room import Room

    sandbox = prepared.sandbox
    spec = prepared.spec
    started = time.time()
    status, error = FAILED, ""
    keeper = vm = feed = None
    reserved = contextlib.ExitStack()
    folder = _renamable(sandbox.folder, reserved)
    events = prepared.events or Events(store.root, spec.name)

    def rename(name: str) -> Events:
        """Give the sandbox another name, and return its events by that name. BadInput if another sandbox has it."""
        nonlocal events
        before = sandbox.spec.name
        sandbox.move(name)
        process.retitle(f"runner: keeps {name}")
        if feed is not None:
            feed.path = sandbox.folder / feed.path.name
        events = events._replace(sandbox=name)
        events.tell("renamed", before=before)
        return events

    try:
        platform = prepared.artifact.config.platform
        chosen = accelerator.choose(
            spec.accelerator, platform, store.root / "kvm.json", prepared.artifact.booted_kernel
        )
        sandbox.in_use = _in_use(prepared, chosen)
        sandbox.write_state(pid=os.getpid(), started=started)
        atomic_write(sandbox.folder / _SPARE, bytes(_SPARE_BYTES), 0o600, durable=False)
        user = reserved.enter_context(process.unprivileged(store.root / "locks"))
        if prepared.served is not None:
            from runner.sandbox.feed import Feed

            feed = Feed(store, prepared.served, sandbox.folder)
        while True:
            debug(f"accelerator {chosen.name}: {chosen.reason}")
            vm, make_template = start_machine(prepared, store, chosen.name, counter, user, feed)
            if prepared.sandbox.in_use.get("start") != "cold":
                sandbox.write_state(pid=os.getpid(), started=started)
            keeper = Keeper(
                vm,
                listener,
                client,
                Log(folder / "console.log"),
                Log(folder / "output.log") if spec.detached else None,
                timeout_s=spec.timeout_s,
                silent_s=None if chosen.known or prepared.snapshot is not None else SILENT_S,
                logs={out: Log(folder / name, MACHINE_LOG_BYTES) for name, out in vm.talk.items()},
                room=Room(sandbox.folder, spec.memory_mib << 20, Limits.of_environment()),
                needs=prepared.needs,
                is_tied=prepared.is_tied,
                on_ready=make_template,
                events=events,
                rename=rename,
                proxy=_open_proxy(prepared, folder) if spec.allow else None,
                feed=feed,
                open_memory=lambda name: _open_memory(store, name),
            )
            events.tell("started", start=sandbox.in_use.get("start", "cold"), accelerator=chosen.name)
            try:
                status = keeper.run()
                break
            except GuestError:
                if feed is None or not feed.take_loss() or (sandbox.folder / "console.log").stat().st_size:
                    raise
                vm.kill()  # its first connection was to a server that was killed; only later ones are made again
            except Silent:
                vm.kill()
                chosen = accelerator.Accelerator("tcg", "KVM exists, but no guest starts with it", True)
                sandbox.in_use = _in_use(prepared, chosen)
                sandbox.write_state(pid=os.getpid(), started=started)
                accelerator.remember(store.root / "kvm.json", prepared.artifact.booted_kernel, False)
        if not chosen.known:
            accelerator.remember(store.root / "kvm.json", prepared.artifact.booted_kernel, True)
        # If nothing is to be kept, end the machine at once: its disk is deleted.
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
        lost = (keeper.lost if keeper is not None else "") or (feed.failure if feed is not None else "")
        error = lost or str(_explain(err, vm, keeper, folder))
    except OSError as err:
        error = f"{err.filename or 'the sandbox'}: {err.strerror}"
    if vm is not None:
        vm.kill()
    reserved.close()
    events.tell("ended", status=status, error=error)
    if feed is not None:
        feed.close()
    ended = Ended(started, status, error, keeper.ended_by if keeper is not None else "")
    # A program that could not be started at first is an error of `boot`.
    may_restart = keeper is not None and not ended.by and (keeper.has_started or restarts.has_begun)
    wait_s = restarts.wait_s(status, time.time() - started) if may_restart else None
    if wait_s is None:
        _finish(prepared, ended)
    else:
        # With its process number it counts as running.
        with contextlib.suppress(OSError):  # the disk may be full
            sandbox.write_state(pid=os.getpid(), started=started, status=status, error=error, ended=time.time())
        events.tell("restarting", status=status, wait_ms=int(wait_s * 1000))
    if keeper is not None:
        keeper.tell(status, error)
        keeper.close()
    else:
        from runner.channel import messages

        client.sendall(messages.frame(messages.ERROR, error.encode()))
    return None if wait_s is None else _restarted(prepared, store, listener, wait_s, ended)


class Ended(NamedTuple):
    """The end of a run."""

    started: float  # Unix time
    status: int
    error: str
    by: str = ""  # BY_USER, BY_HOST


def _finish(prepared: PreparedSandbox, ended: Ended) -> None:
    """Write the last state of a sandbox that is kept, remove another one, and let go of it."""
    sandbox = prepared.sandbox
    if prepared.spec.keep:
        for name in ("control", _SPARE):
            with contextlib.suppress(OSError):
                os.unlink(sandbox.folder / name)
        try:
            sandbox.write_state(started=ended.started, status=ended.status, error=ended.error, ended_by=ended.by)
        except OSError as err:  # `ps` then lists it as cut off
            print(f"state.json: {err.strerror}", file=sys.stderr)
    else:
        sandbox.remove()
    sandbox.release()
    prepared.artifact.release()


def _restarted(
    prepared: PreparedSandbox, store: Store, listener: socket.socket, wait_s: float, ended: Ended
) -> PreparedSandbox | None:
    """Wait, and prepare the sandbox to start again; None if it was told to end meanwhile, or cannot start."""
    sandbox = prepared.sandbox
    if not rest(listener, wait_s, sandbox.spec.name):
        ended = ended._replace(by=BY_USER)
    else:
        try:
            again = _prepare_again(store, sandbox, read(sandbox.folder), secrets=prepared.secrets)
            events = prepared.events
            again = again._replace(events=events and events._replace(sandbox=sandbox.spec.name))
            prepared.artifact.release()  # the new lease has begun
            return again
        except (RootdiskError, OSError, ValueError) as err:
            ended = ended._replace(status=FAILED, error=describe_error(err))
    _finish(prepared, ended)
    return None


def _renamable(folder: Path, stack: contextlib.ExitStack) -> Path:
    """Return a name for the sandbox's directory that stays right if the sandbox is renamed, until `stack` is closed."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return Path(f"/proc/self/fd/{fd}")


def _open_memory(store: Store, name: str) -> int:
    """Create the file for the memory of a snapshot in its new directory."""
    return open_file(store.root / "snapshots" / name / "stream", os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def _open_proxy(prepared: PreparedSandbox, folder: Path) -> Proxy:
    from runner.sandbox.egress import open_proxy  # no other sandbox needs it

    return open_proxy(prepared.spec, folder, prepared.hosts, prepared.secrets)


def _in_use(prepared: PreparedSandbox, chosen: accelerator.Accelerator) -> dict[str, str]:
    """Return what this run actually uses, for `inspect`."""
    method = "overlay" if prepared.disk.overlay else prepared.spec.clone or "copy"
    return {"accelerator": chosen.name, "accelerator_reason": chosen.reason, "clone": method, "start": "cold"}


def _explain(err: RootdiskError, vm: Vm | None, keeper: Keeper | None, folder: Path) -> RootdiskError:
    """Add the last lines of QEMU and the console to an error without a reason."""
    from runner.machine import console

    if err.message or vm is None:
        return err
    how = vm.wait(2)
    if keeper is not None and how is not None:
        keeper.drain()
    lines = console.tail(folder / "console.log")
    machine_lines = console.tail(folder / "machine.log")
    reason = (
        console.meaning(lines) or (machine_lines[-1] if machine_lines else how) or ("" if lines else console.NOTHING)
    )
    shown = "".join(f"\n  {line}" for line in console.telling(lines))
    what = f"the sandbox exited before its program reported a status{': ' + reason if reason else ''}"
    return RootdiskError(what, f"its console:{shown}" if shown else "")
