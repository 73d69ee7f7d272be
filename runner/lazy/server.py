"""The server of one disk: machines read from it while it fills the disk.

    QEMU ── NBD ──▶ main thread ──▶ partial file ◀── fetchers ◀── other disks, registry
    keeper, pull ── messages ──▶    (or the disk, when it is complete)

Machines connect through their keepers, which hand the connection over. So the server has one socket, for messages. It is no
daemon: it ends when no sandbox reads from it and the disk is complete, or cannot be completed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from typing import Any

from rootdisk.durable import open_file
from rootdisk.errors import DigestMismatch, RegistryError
from runner.lazy import nbd
from runner.lazy.agenda import Agenda
from runner.lazy.clients import Client, Clients, Errand
from runner.lazy.completion import Completion, has_disk
from runner.lazy.fetchers import Fetchers
from runner.lazy.guests import Guest
from runner.lazy.reads import Reads, note
from runner.store import filling
from runner.store.filling import DiskSource, FillStatus
from runner.store.partial import PartialDisk, is_full
from runner.store.possession import served
from runner.store.store import Store

_TICK_S = 0.25
_FIRST_CLIENT_S = 10.0  # for the process that has started the server
_MESSAGES_MAX_FDS = 2
_SETTLED_S = 600.0  # longer than a read waits: so servers do not take each other's place while reads wait for ever


class Server:
    """Serves and fills the disk of `source` until nobody needs it."""

    def __init__(
        self, store: Store, source: DiskSource, listener: socket.socket, lock: int, *, is_successor: bool = False
    ) -> None:
        """`is_successor`: a keeper has started it, in place of one that could not fetch."""
        self._store, self._source, self._listener, self._lock = store, source, listener, lock
        self.has_yielded = False  # another process has the lock, and starts the next server
        self._agenda = Agenda(source.chunk_index.chunks, source.first_chunks)
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        now = time.monotonic()
        self._first_client_by = now + _FIRST_CLIENT_S
        self._asks_from = now + _SETTLED_S if is_successor else now
        self._guests: dict[int, Guest] = {}
        self._clients = Clients(self._poll, self._plan)
        self._is_recording = False  # only what is read is fetched
        self._is_unwanted = False  # nobody wants the disk any more
        self._is_deaf = False  # there is no descriptor for another client
        self._has_no_room = False  # since the last chunk that came
        self._fetchers: Fetchers | None = None
        self._completion: Completion | None = None  # None if the disk is complete
        if has_disk(store, source):
            self._reads = Reads(self._agenda, open_file(store.disk(source.digest)), self._tell)
            self._reads.is_complete = True
            return
        partial = PartialDisk(store, source.digest, source.chunk_index)
        self._reads = Reads(self._agenda, partial.fd, self._tell)
        self._completion = Completion(store, source, partial, self._agenda, self._awake)
        self._fetchers = Fetchers(store, source, partial, self._agenda, self._reads.is_wanted, self._awake)

    def _awake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve until nobody needs the server. Its socket must be removed before, and its lock after the end."""
        self._listener.setblocking(False)
        for fd in (self._listener.fileno(), self._wake):
            self._poll.register(fd, select.EPOLLIN)
        try:
            if self._completion is not None:
                assert self._fetchers is not None
                self._completion.take()
                self._plan()
                if self._completion.is_complete:  # since we have looked
                    self._go_on_complete()
                else:
                    self._fetchers.start()
            while not self._is_over():
                for fd, events in self._poll.poll(self._tick_s()):
                    self._handle(fd, events)
                self._look()
        finally:
            if self._fetchers is not None:
                self._fetchers.stop()
            if self._completion is not None and self._has_no_room:
                self._store.partial(self._source.digest).unlink(missing_ok=True)  # free the space
            if self._completion is not None:
                self._completion.close()

    # ── who uses the disk ──

    def _is_over(self) -> bool:
        if self._is_unwanted:
            return True
        if self._guests or self._clients or time.monotonic() < self._first_client_by:
            return False
        if self._completion is None:
            return True
        return (self._reads.problem is not None or self._is_recording) and not self._completion.is_busy

    def _plan(self) -> None:
        if self._is_deaf:
            self._is_deaf = False
            self._poll.modify(self._listener.fileno(), select.EPOLLIN)
        if self._completion is None:
            return
        self._agenda.change(
            in_use=bool(self._guests) or self._clients.are_attached,
            hurried=bool(self._clients.pulling),
            may_fill=self._completion.is_making and not self._is_recording,
            starting=all(guest.is_starting for guest in self._guests.values()),
        )

    def _tick_s(self) -> float | None:
        if self._first_client_by:
            return _TICK_S
        if self._completion is None:
            return None
        is_watched = self._reads.problem is not None or self._clients or not self._completion.is_making
        return _TICK_S if is_watched else None

    def _handle(self, fd: int, events: int) -> None:
        if (guest := self._guests.get(fd)) is not None:
            was_starting = guest.is_starting
            if not guest.carry(events, self._reads):
                self._drop_guest(guest)
            elif was_starting and not guest.is_starting:
                self._plan()
        elif fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        elif fd == self._listener.fileno():
            self._accept()
        elif (client := self._clients.get(fd)) is not None:
            self._hear(client)

    def _accept(self) -> None:
        try:
            self._clients.add(self._listener.accept()[0])
            self._first_client_by = 0.0
        except OSError as err:
            if err.errno in (errno.EMFILE, errno.ENFILE):  # until one is closed: else each look would find it waiting
                self._is_deaf = True
                self._poll.modify(self._listener.fileno(), 0)

    def _hear(self, client: Client) -> None:
        try:
            received = filling.receive(client.sock, _MESSAGES_MAX_FDS)
        except BlockingIOError:
            return
        if received is None:
            self._clients.drop(client)
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
        if word == "end" and not (self._guests or self._clients.are_attached or self._clients.pulling):
            self._is_unwanted = True
            return
        if word == "yield" and self._may_yield:
            with contextlib.suppress(OSError):
                filling.send(client.sock, {"is": "yielded"}, [self._lock])
                self._is_unwanted = self.has_yielded = True
                return
        if word == "attach":
            client.is_attached = True
            self._is_recording |= bool(message.get("records"))
        elif word == "pull":
            client.pulls = True
        elif word not in ("status", "yield"):
            self._clients.drop(client)
            return
        self._plan()
        self._clients.say(client, {"is": "status", **self.status()._asdict()})

    @property
    def _may_yield(self) -> bool:
        """Return whether another server may do better: this one's registry fails, not the host."""
        is_registry = isinstance(self._reads.problem, RegistryError | DigestMismatch)
        return is_registry and self._completion is not None and not self._has_no_room

    def _ask_keepers(self) -> None:
        """Ask one keeper after another to fetch a chunk that reads wait for, and to take this server's place if it can."""
        chunk = self._reads.stuck_at
        if chunk is not None and self._may_yield and time.monotonic() >= self._asks_from:
            self._clients.ask_next({"is": "asks", "chunk": chunk})

    def _provide(self, client: Client, message: dict[str, Any]) -> None:
        """Get a part of the disk for a process that reads the file itself."""
        offset, length = message.get("offset"), message.get("length")
        if (
            isinstance(offset, int)
            and isinstance(length, int)
            and 0 < length <= nbd.READ_MAX_BYTES
            and 0 <= offset <= self._source.chunk_index.disk_size - length
        ):
            self._reads.read(Errand(self._clients, client, lambda: self._reads.reason), 0, offset, length)
        else:
            self._clients.drop(client)

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
        self._reads.drop(guest)
        self._plan()

    def _tell(self, word: str, text: str) -> None:
        """Tell all keepers what guests cannot see."""
        note(text)
        self._clients.tell({"is": word, "text": text})

    def status(self) -> FillStatus:
        """Return what there is to say about the disk."""
        agenda, reads, fetchers = self._agenda, self._reads, self._fetchers
        return FillStatus(
            self._source.place,
            self._is_proven(),
            reads.is_complete,
            agenda.data_bytes if reads.is_complete else agenda.filled_bytes,
            agenda.data_bytes,
            fetchers.fetched_bytes if fetchers is not None else 0,
            reads.count,
            reads.waited,
            reads.longest_wait_s,
            reads.reason,
        )

    def _is_proven(self) -> bool:
        if self._fetchers is not None:
            return self._fetchers.is_proven
        return self._source.digest.hex in served(self._store, self._source.reference, self._source.options)

    # ── filling ──

    def _look(self) -> None:
        """Do what is due: events of the fetchers, time, and the end of the fill."""
        if self._completion is None:
            return
        self._hear_fetchers()
        self._reads.look()
        if not self._completion.is_making and self._completion.take():
            self._plan()
        assert self._fetchers is not None
        error = self._completion.look(self._fetchers.prove)
        if error is not None:
            self._has_no_room |= is_full(error.__cause__)
            self._reads.stuck(error)
        self._ask_keepers()
        if self._completion.is_complete:
            self._go_on_complete()
        self._tell_pulls({"is": "status", **self.status()._asdict()})

    def _hear_fetchers(self) -> None:
        assert self._fetchers is not None
        while self._fetchers.events:
            event = self._fetchers.events.popleft()
            if event.error is None:
                self._has_no_room &= not event.is_fetched
                self._reads.arrived(event.chunks, is_fetched=event.is_fetched)
                continue
            self._has_no_room |= is_full(event.error.__cause__)
            self._reads.failed(event.chunks, event.error)
            pulls = self._clients.pulling
            self._tell_pulls({"is": "failed", "error": event.error.message, "hint": event.error.hint})
            for client in pulls:
                client.pulls = False
            self._plan()

    def _tell_pulls(self, message: dict[str, Any]) -> None:
        for client in self._clients.pulling:
            self._clients.say(client, message)

    def _go_on_complete(self) -> None:
        """Go on with the complete disk, and let keepers hand it to their machines."""
        assert self._fetchers is not None
        assert self._completion is not None
        self._fetchers.stop()
        self._fetchers.events.clear()
        self._completion.close()
        self._completion = None
        self._reads.complete()
        self._clients.tell({"is": "complete"})
