"""Start keepers from a program that must not fork, because it has threads or much memory.

A keeper is a fork of the process that starts it. That is right for the command `runner boot`: it is small, has one thread, and
ends soon. In another program a fork would copy locks that other threads hold, and would keep the program's memory alive. So
the first boot of a program starts a companion: a fresh Python process that has loaded what a keeper needs. For each boot the
program sends it the prepared sandbox and its descriptors, and the companion forks the keeper.

    program ──▶ companion ──fork──▶ keeper      the keeper talks to the program over the descriptors that it was sent
            socket: length, pickle; descriptors

The companion ends when the program does, because its socket closes. Keepers go on or end as they are told to. What is
unpickled comes over an unnamed socket from the process that has started the companion, so from the same user and the same
files of rootdisk.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from rootdisk.errors import RootdiskError
from rootdisk.system import process
from runner.machine import tsc
from runner.sandbox import launch
from runner.sandbox.keeper.process import keep
from runner.sandbox.prepare import PreparedSandbox
from runner.store.store import Store

if TYPE_CHECKING:
    import subprocess

_SIZE = struct.Struct("<I")
_REQUEST_MAX_BYTES = 16 << 20
_FDS_MAX = 64
_END_S = 5.0
# The interpreter is isolated from the environment and the working directory, so it finds this package by its place.
_CODE = "import sys; sys.path.insert(0, {place!r}); from runner.sandbox.starter import serve; serve({fd})"


class _Order(NamedTuple):
    """Order to start a keeper. The descriptors in `prepared` are replaced by those received."""

    prepared: PreparedSandbox
    store: Store
    environment: dict[str, str]


class Starter:
    """A companion process and the connection to it. Threads may share it."""

    def __init__(self) -> None:
        if not sys.executable:
            raise RootdiskError(
                "sandboxes cannot be started: this program does not say where its Python is", "set sys.executable"
            )
        ours, theirs = map(_above_standard, socket.socketpair())
        place = str(Path(__file__).resolve().parents[2])
        code = _CODE.format(place=place, fd=theirs.fileno())
        try:
            with theirs:
                argv = [sys.executable, "-I", "-X", "utf8", "-c", code]
                self._process: subprocess.Popen[bytes] = process.accompany(argv, theirs.fileno())
        except OSError as err:
            ours.close()
            raise RootdiskError(f"cannot start {sys.executable}: {err.strerror}", "is sys.executable right?") from err
        self._sock = ours
        self._lock = threading.Lock()
        self.owner = os.getpid()

    def begin(self, prepared: PreparedSandbox, store: Store) -> socket.socket:
        """Start the keeper of a sandbox. Return the connection of its main client.

        Raises:
            RootdiskError: The companion is gone. The sandbox is removed if it is not kept.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, launch.listen(prepared.sandbox.folder) as listener:
                fds = [theirs.fileno(), listener.fileno(), prepared.sandbox.lock, *prepared.artifact.lease]
                # The keeper has another working directory, which relative entries of PATH must not refer to.
                path = os.pathsep.join(map(os.path.abspath, os.get_exec_path()))
                secret = prepared.secrets.variables if prepared.secrets is not None else ()
                environment = {name: value for name, value in os.environ.items() if name not in secret}
                self._send(_Order(prepared, store, {**environment, "PATH": path}), fds)
        except BaseException as err:
            ours.close()
            if not prepared.spec.keep:
                prepared.sandbox.remove()
            if isinstance(err, OSError):
                raise RootdiskError("the process that starts sandboxes was killed", "boot the sandbox again") from err
            raise
        finally:
            prepared.sandbox.release()
            prepared.artifact.release()
        return ours

    def _send(self, order: _Order, fds: list[int]) -> None:
        data = pickle.dumps(order)
        if len(data) > _REQUEST_MAX_BYTES or len(fds) > _FDS_MAX:
            raise RootdiskError(f"sandbox {order.prepared.spec.name}: its options take {len(data):,} bytes")
        with self._lock:
            socket.send_fds(self._sock, [_SIZE.pack(len(data))], fds)
            self._sock.sendall(data)

    @property
    def is_alive(self) -> bool:
        """Return whether the companion runs, and is that of this process rather than of one that has forked it."""
        return self.owner == os.getpid() and self._process.poll() is None

    def close(self) -> None:
        """End the companion. Keepers that it has started go on."""
        self._sock.close()
        if self.owner == os.getpid():
            self._process.wait(_END_S)


def _above_standard(sock: socket.socket) -> socket.socket:
    """Return the same socket at a descriptor larger than 2: a program may have closed its standard streams."""
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 3))


_current: Starter | None = None
_current_lock = threading.Lock()


def begin(prepared: PreparedSandbox, store: Store, counter: tsc.Counter | None = None) -> tuple[socket.socket, int]:
    """Start the keeper of a sandbox, as `launch.begin` does, but without a fork of this process; its number is unknown: 0."""
    return current().begin(prepared, store), 0


def current() -> Starter:
    """Return this program's companion. The first call starts it, so it should come before long work.

    Raises:
        RootdiskError: It cannot be started.
    """
    global _current
    with _current_lock:
        if _current is None or not _current.is_alive:
            import atexit

            _current = Starter()
            atexit.register(_current.close)
        return _current


def serve(fd: int) -> NoReturn:
    """Be the companion: fork a keeper for each order, and end when the program does."""
    # A keeper that has ended leaves no zombie. Each keeper sets this back, because it waits for its machine.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.umask(0o077)
    os.environ.clear()  # each order has one
    process.protect_secrets()
    process.retitle("runner: starts sandboxes of another program")
    counter = tsc.Counter()
    _load()
    with socket.socket(fileno=fd) as sock:
        while (request := _receive(sock)) is not None:
            _fork_keeper(*request, counter)
    os._exit(0)


def _load() -> None:
    """Import what every keeper needs, so that it is loaded once and its memory is shared."""
    import gc

    from runner.machine import qemu
    from runner.sandbox.keeper import loop, run

    assert all((qemu, loop, run))
    gc.freeze()


def _receive(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return the next order and its descriptors; None if the program has ended."""
    head, fds, _, _ = socket.recv_fds(sock, _SIZE.size, _FDS_MAX)
    if not head:
        return None
    data = bytearray()
    (size,) = _SIZE.unpack(head)
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data), fds


def _fork_keeper(data: bytes, fds: list[int], counter: tsc.Counter) -> None:
    """Fork the keeper. Close what only it needs."""
    if not os.fork():
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            order: _Order = pickle.loads(data)
            os.environ.clear()
            os.environ.update(order.environment)
            client, listener, lock, *lease = fds
            prepared = order.prepared
            prepared.sandbox.lock = lock
            prepared = prepared._replace(artifact=prepared.artifact._replace(lease=tuple(lease)))
            keep(prepared, order.store, socket.socket(fileno=client), socket.socket(fileno=listener), counter)
        except Exception:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    for fd in fds:
        os.close(fd)
