"""Find the server of a disk, or start it: a process of its own that outlives the one that has started it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rootdisk.durable import is_named, read_file
from rootdisk.errors import Busy, RootdiskError
from rootdisk.oci.documents import Digest
from rootdisk.system import process
from rootdisk.system.locks import sign, take
from rootdisk.system.sockets import listening
from rootdisk.text import one_line, printable
from runner.store import filling
from runner.store.filling import DiskSource, FillStatus
from runner.store.names import files_of
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.lazy.server import Server

START_S = 30.0  # for a server to answer that another process has started
_POLL_S = 0.02
_REFUSED_S = 2.0  # a server that has ended is gone by then
_STARTS_MAX = 3
_ATTEMPT_S = 0.001  # for retries: there are none
_TRY_S = 10  # for a chunk to come
_LOG_MAX_BYTES = 16 << 20
_BACKLOG = 256


def enter(store: Store, source: DiskSource) -> socket.socket:
    """Return a connection to the server of a disk for a new sandbox.

    If the server fetches from another repository, that of `source` must show that it has the disk too; see possession.py. A server
    whose registry fails, or refuses its credentials, is replaced if `source` can be fetched from.

    Raises:
        RootdiskError: It does not show that, or the disk has no server.
    """
    sock, status = attach(store, source)
    if status.problem and not status.is_complete and _serves_disk(source):
        sock, status = _replace(store, source, sock)
    try:
        is_proven = status.is_proven and status.place == source.place
        if is_proven or status.place != source.place or status.is_complete:
            _check_possession(store, source, has_disk=is_proven)
    except BaseException:
        sock.close()
        raise
    return sock


def succeed(store: Store, source: DiskSource, number: int) -> None:
    """Have a new process take the place of a disk's server, if it can fetch chunk `number` from `source`. Does not wait for that."""
    _in_new_process(lambda: _succeed(store, source, number))


def _succeed(store: Store, source: DiskSource, number: int) -> NoReturn:
    """Be the process that tries to. Never returns."""
    try:
        _stand_alone((), None, f"runner: may serve disk {source.digest.short}")
        signal.alarm(_TRY_S)  # whatever hangs: the server asks again
        if _serves_disk(source, number) and (sock := filling.connect(store, source.digest)) is not None:
            signal.alarm(0)
            with sock:
                lock = filling.take_over(sock)
            if lock is not None:
                _start(store, source, lock, is_successor=True)
    except BaseException:
        import traceback

        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        os._exit(0)


def _serves_disk(source: DiskSource, number: int | None = None) -> bool:
    """Return whether the repository of `source` serves a chunk of the disk, `number` or a random one, at the first attempt."""
    from rootdisk.oci.repository import Joined
    from rootdisk.places import open_mirrored
    from runner.store.fetch import check_chunk

    options = source.options._replace(give_up_s=_ATTEMPT_S)
    with contextlib.suppress(RootdiskError), contextlib.closing(open_mirrored(source.reference, options)) as repository:
        check_chunk(Joined(repository, source.blobs), source.chunk_index, number)
        return True
    return False


def _replace(store: Store, source: DiskSource, sock: socket.socket) -> tuple[socket.socket, FillStatus]:
    """Start a server of `source` instead of the one that `sock` leads to. Keepers find it as they do when one is killed."""
    with sock:
        lock = filling.take_over(sock)
        if lock is not None:
            _start(store, source, lock)
    return attach(store, source)


def _check_possession(store: Store, source: DiskSource, *, has_disk: bool) -> None:
    """Have the repository of an artifact show that it has everything, and keep the artifact's name; `has_disk`: it has shown that for the disk."""
    from rootdisk.oci.repository import Joined
    from rootdisk.places import open_mirrored
    from runner.store.fetch import check_chunk, fetch_rest
    from runner.store.possession import keep_asked, served

    known = served(store, source.reference, source.options)
    with contextlib.closing(open_mirrored(source.reference, source.options)) as repository:
        if not has_disk and source.digest.hex not in known:
            check_chunk(Joined(repository, source.blobs), source.chunk_index)
        fetch_rest(store, repository, source.manifest, known)
    keep_asked(store, source.reference, source.options, source.manifest)


def attach(store: Store, source: DiskSource, timeout_s: float = START_S) -> tuple[socket.socket, FillStatus]:
    """Return a connection to the server of a disk, and its status. A server is started if there is none.

    The server lives at least until all copies of the connection are closed.

    Raises:
        Busy: A server exists and does not answer.
        RootdiskError: No server can be started.
    """
    deadline = time.monotonic() + timeout_s
    refused_by: float | None = None  # until when a server that answers nothing may be one that ends
    starts = 0
    path = filling.folder(store) / f"{source.digest.hex}.lock"
    while True:
        sock = filling.connect(store, source.digest)
        if sock is not None:
            sock.settimeout(min(timeout_s, filling.ANSWER_S))
            asked_at = time.monotonic()
            answer = filling.ask(sock, {"do": "attach"})
            if answer is not None:
                try:
                    return sock, FillStatus.of(answer)
                except ValueError as err:
                    sock.close()
                    raise _other_version(source, path, f": it {err}") from err
            sock.close()  # it has just ended, or does not understand
            now = time.monotonic()
            if now - asked_at < _REFUSED_S:
                refused_by = refused_by or now + _REFUSED_S
                if now > refused_by:
                    raise _other_version(source, path)
        if time.monotonic() > deadline:
            raise filling.silence(store, source.digest)
        try:
            store.made_folder(filling.FOLDER)
            lock = take(path, timeout_s=0)
        except Busy:
            time.sleep(_POLL_S)
            continue
        if starts == _STARTS_MAX:
            os.close(lock)
            raise RootdiskError(f"the server of disk {source.digest.short} ends at once: {last_words(store, source)}")
        starts += 1
        refused_by = None
        _start(store, source, lock)


def _other_version(source: DiskSource, lock: Path, why: str = "") -> RootdiskError:
    hint = f"wait for its end, or end it: its process number is in {printable(lock)}"
    return RootdiskError(f"the server of disk {source.digest.short} is of another version{why}", hint)


def last_words(store: Store, source: DiskSource) -> str:
    """Return the last line of the log of a server."""
    with contextlib.suppress(OSError, IndexError):
        log = read_file(filling.folder(store) / f"{source.digest.hex}.log", _LOG_MAX_BYTES)
        return one_line(log.decode(errors="replace").splitlines()[-1])
    return "it has said nothing"


def _start(store: Store, source: DiskSource, lock: int, *, is_successor: bool = False) -> None:
    """Start the server, which gets the lock. It can be connected to when this returns."""
    name = f"{source.digest.hex}.socket"
    try:
        with listening(filling.folder(store), name, _BACKLOG, socket.SOCK_SEQPACKET) as listener:
            _in_new_process(lambda: _serve(store, source, lock, listener, is_successor=is_successor))
    finally:
        os.close(lock)


def _in_new_process(run: Callable[[], NoReturn]) -> None:
    """Run `run` in a process that nobody has to wait for: the child of a child that has ended.

    Raises:
        OSError: No more processes are allowed.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            if not os.fork():
                run()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _stand_alone(keep: Collection[int], log: Path | None, title: str) -> None:
    """Make this forked process, whose parent may be a keeper, one of its own with the `title`; see process.detach."""
    process.detach(keep, log)
    signal.set_wakeup_fd(-1)  # a keeper's
    process.restart_signals()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process.protect_secrets()
    process.retitle(title)


def _serve(store: Store, source: DiskSource, lock: int, listener: socket.socket, *, is_successor: bool) -> NoReturn:
    """Be the server process. Never returns."""
    status = 1
    server: Server | None = None
    base = filling.folder(store) / source.digest.hex
    log = base.with_suffix(".log")
    try:
        _stand_alone({lock, listener.fileno()}, log, f"runner: serves disk {source.digest.short}")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each sandbox
        sign(lock, f"serves disk {source.digest.short}")
        from runner.lazy.server import Server

        # What the disk is fetched for is held, so that a prune does not make the fill pointless.
        lease = store.lease({source.digest.hex, *files_of(store, Digest.of(source.manifest).hex)})
        server = Server(store, source, listener, lock, is_successor=is_successor)
        server.run()
        for fd in lease:  # before the connections: a process that waits for their end may remove it then
            os.close(fd)
        status = 0
    except BaseException:
        import traceback

        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        # Who connects from now on finds no server. Who has connected already is told so by the end of the connection.
        with contextlib.suppress(OSError):
            has_yielded = server is not None and server.has_yielded
            if is_named(lock, base.with_suffix(".lock")) and not has_yielded:  # not of a store made again
                os.unlink(base.with_suffix(".socket"))
                os.unlink(base.with_suffix(".lock"))
        with contextlib.suppress(OSError):
            if not log.stat().st_size:
                log.unlink()
        os._exit(status)
