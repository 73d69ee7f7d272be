"""One sandbox from clone to exit status: directory, disk, slot, QEMU, channel, and everything gone again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner import accel, qemu, slot, tsc
from runner.clone import clone
from runner.debug import debug
from runner.errors import BadInput, RootdiskError
from runner.fetch import Local
from runner.files import write_json
from runner.store import Store, started

if TYPE_CHECKING:
    from runner.channel import Channel, GuestError

STOP_S = 10
_PR_SET_PDEATHSIG = 1


class Options(NamedTuple):
    """What a user asks of one run. Records are the slot's, docs/layout-1.md."""

    records: tuple[tuple[str, bytes], ...]
    name: str
    memory_mib: int
    cpus: int
    network: bool = True
    timeout_s: float | None = None
    keep: bool = False
    interactive: bool = False
    terminal: bool = False
    accelerator: str | None = None
    clone: str | None = None
    debug: bool = False


def run(store: Store, local: Local, options: Options, counter: tsc.Counter | None = None) -> int:
    """Boot `local` and carry its program's input and output; the program's exit status, 124 at the time-out.

    `counter` may have been measuring since earlier. RootdiskError with the guest's or the console's reason where the sandbox fails.
    """
    program = qemu.program(local.config.platform)
    counter = counter or tsc.Counter()
    chosen = accel.choose(options.accelerator)
    debug(f"accelerator {chosen.name}: {chosen.reason}")
    if local.kernel is None or local.initramfs is None:
        raise BadInput("the artifact carries no kernel", "build it with a kernel in images.toml")
    with _directory(store, local, options) as folder:
        extent = local.config.slot()
        filled = slot.pack((*options.records, *_own_records(options)), extent.length)
        disk = clone(local.disk, local.config.disk_size, folder, options.clone, slot.clusters(extent, filled))
        slot.write(disk.path, extent, filled, folder / "slot.json", overlay=disk.overlay, durable=options.keep)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            machine = qemu.Machine(
                local.config.platform,
                chosen.name,
                options.memory_mib,
                options.cpus,
                local.kernel,
                local.initramfs,
                _cmdline(local, counter if chosen.name == "tcg" else None, filled.digest, options.debug),
                disk.path,
                disk.form,
                folder / "console.log",
                theirs.fileno(),
                options.network,
            )
            argv = qemu.command(program, machine)
            debug(" ".join(argv))
            with _running(argv, theirs, folder) as process:
                return _carry(process, ours, folder, options)


def _cmdline(local: Local, counter: tsc.Counter | None, slot_digest: str, debug: bool) -> str:
    """The kernel's command line: the artifact's, and what this run adds; `counter` is for a guest under TCG."""
    words = [local.config.cmdline, f"rootdisk.slot={slot_digest}"]
    if counter is not None and local.config.platform.architecture == "amd64" and (khz := counter.khz()):
        words.append(f"tsc_early_khz={khz}")
    if debug:
        words.append("rootdisk.debug=1")
    return " ".join(words)


def _carry(process: subprocess.Popen[bytes], ours: socket.socket, folder: Path, options: Options) -> int:
    """Everything between the two sides, until the program has ended."""
    from runner.channel import Channel, GuestError, TimeOut  # loaded while the guest starts

    channel = Channel(ours)
    start = time.monotonic()
    end = start + options.timeout_s if options.timeout_s else None

    def ready() -> None:
        debug(f"program started after {time.monotonic() - start:.2f} s")
        if options.terminal:
            channel.resize(*_window())

    stdin = 0 if options.interactive else None
    try:
        with _signals(channel, options.terminal), _raw(options.terminal and options.interactive):
            status = channel.run(stdin=stdin, stdout=1, stderr=2, deadline=end, on_ready=ready)
        channel.acknowledge()
    except TimeOut:
        return 124
    except GuestError as err:
        raise _explained(err, process, folder) from err
    finally:
        for line in channel.logs:
            debug(f"guest: {line}")
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        debug("the guest did not power off; ended")
    return status


def _explained(err: GuestError, process: subprocess.Popen[bytes], folder: Path) -> RootdiskError:
    """The error with what QEMU and the console say."""
    from runner import console

    if err.message:
        return err
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    lines = console.tail(folder / "console.log")
    complaint = (folder / "qemu.log").read_text(errors="replace").strip().splitlines()
    reason = console.meaning(lines) or (complaint[-1] if complaint else "")
    shown = "".join(f"\n  {line}" for line in lines)
    return RootdiskError(f"the sandbox ended without a word{': ' + reason if reason else ''}", f"its console:{shown}")


@contextlib.contextmanager
def _directory(store: Store, local: Local, options: Options) -> Iterator[Path]:
    """The sandbox's directory, and its state for ps; removed at the end unless it is to be kept."""
    folder = store.sandboxes / options.name
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as err:
        raise BadInput(f"there is a sandbox {options.name} already", "choose another --name, or runner rm it") from err
    files = [local.disk.stem, *(path.name for path in (local.kernel, local.initramfs) if path)]
    state = {
        "name": options.name,
        "artifact": str(local.digest),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "created": int(time.time()),
        "keep": options.keep,
        "uses": files,
    }
    try:
        # A sandbox that is not kept need not outlive a power cut: its next runner removes it.
        write_json(folder / "state.json", state, durable=options.keep)
        yield folder
    finally:
        if options.keep:
            write_json(folder / "state.json", {**state, "pid": 0})
        else:
            import shutil  # when the sandbox has ended, there is time to load it

            shutil.rmtree(folder, ignore_errors=True)


def _own_records(options: Options) -> list[tuple[str, bytes]]:
    """What every sandbox is told: who it is, what time it is, and randomness of its own."""
    records = [
        ("machine-id", os.urandom(16).hex().encode()),
        ("entropy", os.urandom(64).hex().encode()),
        ("time", f"{time.time():.3f}".encode()),
        ("network", b"user" if options.network else b"none"),
    ]
    if options.interactive:
        records.append(("stdin", b"1"))
    if options.terminal:
        records.append(("tty", b"1"))
    return records


@contextlib.contextmanager
def _running(argv: list[str], theirs: socket.socket, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU while it runs. It ends with us, even when we are killed."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def bound() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with open(folder / "qemu.log", "xb") as errors:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is ours to pass on
            preexec_fn=bound,
        )
    theirs.close()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextlib.contextmanager
def _signals(channel: Channel, terminal: bool) -> Iterator[None]:
    """Ctrl-C, SIGTERM and hang-up stop the program in the guest; the window's size follows."""
    handlers = {number: lambda *_: channel.stop(STOP_S) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if terminal:
        handlers[signal.SIGWINCH] = lambda *_: channel.resize(*_window())
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """Our terminal hands every key on."""
    if not wanted or not os.isatty(0):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _window() -> tuple[int, int]:
    import fcntl
    import termios

    try:
        rows, columns = struct.unpack("HHHH", fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8)))[:2]
    except (OSError, ValueError):
        return 24, 80
    return (rows or 24), (columns or 80)
