"""The server of one disk: machines read from it while it fills the disk.

    QEMU ── NBD ──▶ main thread ──▶ partial file ◀── fetchers ◀── other disks, registry
    keeper, pull ── messages ──▶    (or the disk, when it is complete)

Machines connect through their keepers, which hand the connection over. So the server has one socket, for messages. It is no
daemon: it ends when no sandbox uses the disk and the disk is complete, or cannot be completed.

A read that needs a chunk that cannot be fetched waits. After WAIT_S seconds without any success it fails with EIO.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

from rootdisk.durable import open_file
from rootdisk.errors import Busy, RootdiskError
from rootdisk.text import one_line
from runner.lazy import nbd
from runner.lazy.agenda import Agenda
from runner.lazy.fetchers import Event, Fetchers
from runner.lazy.guests import Asker, Guest, Read
from runner.store import filling
from runner.store.filling import DiskSource, FillStatus
from runner.store.partial import PartialDisk, is_full, partial_path, write_error
from runner.store.store import Store

WAIT_S = 60.0  # without success, until reads fail
_TICK_S = 0.25
_FIRST_CLIENT_S = 10.0  # for the process that has started the server
_MESSAGES_MAX_FDS = 2


class Client:
    """A process that uses the server: a keeper, or a pull."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_attached = False  # keeps the server alive, and is told what happens
        self.pulls = False  # waits for the complete disk


class Errand:
    """A read of a process that needs a part of the disk in the file."""

    def __init__(self, server: Server, client: Client) -> None:
        self._server, self._client = server, client

    def answer(self, fd: int, cookie: int, offset: int, length: int) -> None:
        """Say that the part is there."""
        self._server.say(self._client, {"is": "there"})

    def refuse(self, cookie: int, error: int) -> None:
        """Say why it is not."""
        self._server.say(self._client, {"is": "failed", "error": self._server.reason, "hint": ""})


class Server:
    """Serves and fills the disk of `source` until nobody needs it."""

    def __init__(self, store: Store, source: DiskSource, listener: socket.socket) -> None:
        self._store, self._source, self._listener = store, source, listener
        self._starts = [chunk.offset for chunk in source.chunk_index.chunks]
        self._agenda = Agenda(source.chunk_index.chunks, source.first_chunks)
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._first_client_by = time.monotonic() + _FIRST_CLIENT_S
        self._guests: dict[int, Guest] = {}
        self._clients: dict[int, Client] = {}
        self._waits: dict[int, list[Read]] = {}  # by the number of a chunk that they wait for
        self._making = contextlib.ExitStack()
        self._is_making = False  # we hold the lock for changing the disk
        self._is_complete = self._has_disk()
        self._finisher: threading.Thread | None = None
        self._has_finished = False
        self._finish_error: RootdiskError | None = None
        self._partial: PartialDisk | None = None
        self._fetchers: Fetchers | None = None
        if self._is_complete:
            self._fd = open_file(store.disk(source.digest))
        else:
            self._partial = PartialDisk(store, source.digest, source.chunk_index)
            self._fd = self._partial.fd
            self._fetchers = Fetchers(
                store,
                source,
                self._partial,
                self._agenda,
                self._waits.__contains__,
                lambda: os.eventfd_write(self._wake, 1),
            )
        self._problem: RootdiskError | None = None
        self._failing_since: float | None = None
        self._failed: set[int] = set()  # chunks that were asked for since then, in vain
        self._is_told = False
        self._is_recording = False  # only what is read is fetched
        self._reads_waited = 0
        self._longest_wait_s = 0.0

    def _has_disk(self) -> bool:
        return self._store.disk(self._source.digest).exists() and not self._store.damage(self._source.digest.hex)

    def run(self) -> None:
        """Serve until nobody needs the server. Its socket must be removed before, and its lock after the end."""
        self._listener.setblocking(False)
        for fd in (self._listener.fileno(), self._wake):
            self._poll.register(fd, select.EPOLLIN)
        try:
            self._become_maker()
            if self._fetchers is not None:
                self._plan()
                self._fetchers.start()
            while not self._is_over():
                for fd, events in self._poll.poll(self._tick_s()):
                    self._handle(fd, events)
                self._look()
        finally:
            if self._fetchers is not None:
                self._fetchers.stop()
            if is_full(self._problem.__cause__ if self._problem else None):
                partial_path(self._store, self._source.digest).unlink(missing_ok=True)  # free the space
            self._making.close()

    # ── who uses the disk ──

    def _is_over(self) -> bool:
        if self._guests or self._clients:
            return False
        if time.monotonic() < self._first_client_by:
            return False
        if not self._is_complete and self._problem is None and not self._is_recording:
            return False
        return self._finisher is None

    def _plan(self) -> None:
        is_used = bool(self._guests) or any(client.is_attached for client in self._clients.values())
        is_awaited = any(client.pulls for client in self._clients.values())
        self._agenda.change(in_use=is_used, hurried=is_awaited, may_fill=self._is_making and not self._is_recording)

    def _tick_s(self) -> float | None:
        if self._first_client_by:
            return _TICK_S
        if self._problem is not None or (not self._is_complete and (self._clients or not self._is_making)):
            return _TICK_S
        return None

    def _handle(self, fd: int, events: int) -> None:
        if (guest := self._guests.get(fd)) is not None:
            if not guest.carry(events, self):
                self._drop_guest(guest)
        elif fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        elif fd == self._listener.fileno():
            self._accept()
        elif (client := self._clients.get(fd)) is not None:
            self._hear(client)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            self._clients[sock.fileno()] = Client(sock)
            self._first_client_by = 0.0
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _hear(self, client: Client) -> None:
        try:
            received = filling.receive(client.sock, _MESSAGES_MAX_FDS)
        except BlockingIOError:
            return
        if received is None:
            self._drop_client(client)
            return
        message, fds = received
        word = message.get("do")
        if word == "serve" and fds:
            self._serve(fds)
            return
        for fd in fds:
            os.close(fd)
        if word == "need":
            self._provide(client, message)
            return
        if word == "attach":
            client.is_attached = True
        elif word == "pull":
            client.pulls = True
        elif word != "status":
            self._drop_client(client)
            return
        self._plan()
        self.say(client, {"is": "status", **self.status()._asdict()})

    def _provide(self, client: Client, message: dict[str, Any]) -> None:
        """Get a part of the disk for a process that reads the file itself."""
        offset, length = message.get("offset"), message.get("length")
        if (
            isinstance(offset, int)
            and isinstance(length, int)
            and 0 < length <= nbd.READ_MAX_BYTES
            and 0 <= offset <= self._source.chunk_index.disk_size - length
        ):
            self.read(Errand(self, client), 0, offset, length)
        else:
            self._drop_client(client)

    def _serve(self, fds: list[int]) -> None:
        """Serve the machine that is connected to the first descriptor. The second is a file for its reads, in order."""
        guest = Guest(socket.socket(fileno=fds[0]), self._poll, self._source.chunk_index.disk_size)
        guest.record = fds[1] if len(fds) > 1 else None
        self._is_recording |= guest.record is not None
        self._guests[guest.fd] = guest
        guest.greet()
        self._plan()

    def _drop_guest(self, guest: Guest) -> None:
        del self._guests[guest.fd]
        guest.close()
        for number in list(self._waits):
            self._waits[number] = [read for read in self._waits[number] if read.guest is not guest]
            if not self._waits[number]:
                del self._waits[number]
        self._plan()

    def _drop_client(self, client: Client) -> None:
        del self._clients[client.sock.fileno()]
        client.sock.close()
        self._plan()

    def say(self, client: Client, message: dict[str, Any]) -> None:
        """Send a message, or drop a client that is gone."""
        if client.sock.fileno() not in self._clients:
            return
        try:
            filling.send(client.sock, message)
        except BlockingIOError:  # it does not read
            pass
        except OSError:
            self._drop_client(client)

    def _tell(self, message: dict[str, Any]) -> None:
        """Tell all keepers what guests cannot see."""
        print(one_line(message.get("text", "")), file=sys.stderr, flush=True)
        for client in list(self._clients.values()):
            if client.is_attached:
                self.say(client, message)

    def status(self) -> FillStatus:
        """Return what there is to say about the disk."""
        now = time.monotonic()
        pending = [now - read.since for reads in self._waits.values() for read in reads]
        fetchers = self._fetchers
        is_whole = self._is_complete
        return FillStatus(
            self._source.place,
            is_whole or (fetchers is not None and fetchers.is_proven),
            is_whole,
            self._agenda.data_bytes if is_whole else self._agenda.filled_bytes,
            self._agenda.data_bytes,
            fetchers.fetched_bytes if fetchers is not None else 0,
            self._reads_waited,
            max([self._longest_wait_s, *pending]),
            self.reason,
        )

    # ── reads ──

    @property
    def reason(self) -> str:
        """The reason for which chunks cannot be fetched at the moment; "" if they can."""
        return one_line(str(self._problem)) if self._problem is not None and not self._is_complete else ""

    def read(self, guest: Asker, cookie: int, offset: int, length: int) -> None:
        """Answer a read of a guest, at once or when its chunks are there."""
        if self._is_complete or not (missing := self._missing(offset, length)):
            guest.answer(self._fd, cookie, offset, length)
            return
        read = Read(guest, cookie, offset, length, missing, time.monotonic())
        self._reads_waited += 1
        for number in sorted(missing):
            self._waits.setdefault(number, []).append(read)
            self._failed.discard(number)  # it is tried at least once more
            self._agenda.want(number)

    def _missing(self, offset: int, length: int) -> set[int]:
        first = bisect_right(self._starts, offset) - 1
        last = bisect_right(self._starts, offset + length - 1) - 1
        return {number for number in range(first, last + 1) if not self._agenda.is_there(number)}

    def _arrived(self, number: int) -> None:
        now = time.monotonic()
        for read in self._waits.pop(number, ()):
            read.missing.discard(number)
            if not read.missing:
                self._longest_wait_s = max(self._longest_wait_s, now - read.since)
                read.guest.answer(self._fd, read.cookie, read.offset, read.length)

    def _fail(self, number: int) -> None:
        """Fail the reads that wait for a chunk."""
        chunk = self._source.chunk_index.chunks[number]
        for read in self._waits.pop(number, ()):
            self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - read.since)
            for other in read.missing - {number}:
                if other in self._waits:
                    self._waits[other].remove(read)
                    if not self._waits[other]:
                        del self._waits[other]
            read.guest.refuse(read.cookie, nbd.EIO)
        where = f"chunk {number}, at byte {chunk.offset} of the disk"
        self._tell(
            {"is": "lost", "text": f"reads of the disk failed, because {where}, cannot be fetched: {self._problem}"}
        )

    # ── filling ──

    def _look(self) -> None:
        """Do what is due: events of the fetchers, time, and the end of the fill."""
        while self._fetchers is not None and self._fetchers.events:
            self._note(self._fetchers.events.popleft())
        if self._failing_since is not None:
            self._see_failing(time.monotonic() - self._failing_since)
        if not self._is_complete:
            if not self._is_making:
                self._become_maker()
            self._finish()
            for client in list(self._clients.values()):
                if client.pulls:
                    self.say(client, {"is": "status", **self.status()._asdict()})

    def _note(self, event: Event) -> None:
        if event.error is None:
            for chunk in event.chunks:
                self._arrived(self._agenda.number(chunk))
            if event.is_fetched and self._problem is not None:
                self._problem = self._failing_since = None
                self._failed.clear()
                if self._is_told:
                    self._is_told = False
                    self._tell({"is": "goes on", "text": "the disk is being fetched again"})
            return
        if str(event.error) != str(self._problem):
            print(one_line(str(event.error)), file=sys.stderr, flush=True)
        self._problem = event.error
        self._failing_since = self._failing_since or time.monotonic()
        self._failed |= {self._agenda.number(chunk) for chunk in event.chunks}
        for client in list(self._clients.values()):
            if client.pulls:
                self.say(client, {"is": "failed", "error": event.error.message, "hint": event.error.hint})
                client.pulls = False
        self._plan()

    def _see_failing(self, seconds: float) -> None:
        if self._waits and not self._is_told:
            self._is_told = True
            self._tell({"is": "waits", "text": f"reads of the disk wait, for {WAIT_S:g} s at most: {self._problem}"})
        if seconds >= WAIT_S:
            for number in [number for number in self._waits if number in self._failed]:
                if number in self._waits:
                    self._fail(number)

    def _become_maker(self) -> None:
        """Get the lock for changing the disk. Another process may pull it: then only reads are served."""
        if self._is_complete:
            return
        doing = f"fetches disk {self._source.digest.short}"
        try:
            self._making.enter_context(self._store.unless_made(self._source.digest.hex, doing))
        except Busy:
            return
        self._is_making = True
        assert self._partial is not None
        if self._has_disk():
            self._replace(self._store.disk(self._source.digest), os.O_RDONLY)
            self._complete()
        elif not _is_named(self._partial.fd, self._partial.path):  # removed, because the disk was full
            self._replace(self._partial.path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._fd, self._source.chunk_index.disk_size)
            self._agenda.forget()
        self._plan()

    def _replace(self, path: Path, flags: int) -> None:
        """Open `path` in place of the partial file, under the same descriptor."""
        fd = open_file(path, flags)
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)

    def _finish(self) -> None:
        """Give the complete disk its name, in a thread because it is synced before."""
        if self._finisher is None and not self._agenda.left and self._is_making:
            self._finisher = threading.Thread(target=self._name, daemon=True)
            self._finisher.start()
        elif self._finisher is not None and self._has_finished:
            self._finisher.join()
            self._finisher, self._has_finished = None, False
            if self._finish_error is None:
                self._complete()
                return
            self._problem, self._finish_error = self._finish_error, None
            self._failing_since = self._failing_since or time.monotonic()

    def _name(self) -> None:
        assert self._partial is not None
        assert self._fetchers is not None
        try:
            self._partial.finish()
            if not self._fetchers.is_proven:
                self._fetchers.prove()
        except OSError as err:
            self._finish_error = write_error(self._store, err, self._source.chunk_index.disk_size)
            self._finish_error.__cause__ = err
            time.sleep(1)  # before the next attempt
        self._has_finished = True
        os.eventfd_write(self._wake, 1)

    def _complete(self) -> None:
        """Go on with the complete disk."""
        self._is_complete = True
        assert self._fetchers is not None
        self._fetchers.stop()
        self._fetchers.events.clear()
        self._problem = self._failing_since = None
        self._making.close()
        for number in list(self._waits):
            self._arrived(number)
        for client in list(self._clients.values()):
            if client.pulls:
                self.say(client, {"is": "status", **self.status()._asdict()})
        if self._is_told:
            self._tell({"is": "goes on", "text": "the disk is complete"})


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
