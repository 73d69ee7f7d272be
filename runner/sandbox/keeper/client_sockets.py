"""The sockets of a keeper's clients: accepted, read, written and closed as the router says."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from selectors import EVENT_READ, EVENT_WRITE

from runner.channel.messages import GuestError
from runner.sandbox.keeper.watched import Source, Watched, receive, send
from runner.sandbox.routing.clients import Client
from runner.sandbox.routing.router import Router

_ACCEPTED_MAX = 64  # connections in an iteration
_PATIENCE_S = 2.0  # minimum time for a client without a request, if others want to connect
_RETRY_S = 0.2  # after accept has failed because no descriptor was free


class ClientSockets:
    """The connected clients, and the control socket where more of them connect."""

    def __init__(self, router: Router, watched: Watched, listener: socket.socket, main: socket.socket) -> None:
        """`main` is connected to the main client."""
        self._router = router
        self._watched = watched
        self._listener = listener
        self._clients = {main: router.main}
        self._joined: dict[Client, float] = {}  # when each client has connected
        self._accept_at = 0.0
        for sock in (listener, main):
            sock.setblocking(False)

    @property
    def next_time(self) -> float | None:
        """The time to accept again (monotonic seconds); None if nothing is in the way."""
        return self._accept_at or None

    def watch(self) -> None:
        """Register the events that the router wants."""
        if time.monotonic() >= self._accept_at:
            self._accept_at = 0.0
        self._watched.watch(self._listener, 0 if self._accept_at else EVENT_READ)
        self._watch_clients()

    def carry(self, ready: Mapping[Source, int]) -> None:
        """Read from and write to the clients that are ready."""
        for source, events in ready.items():
            if isinstance(source, socket.socket) and (client := self._clients.get(source)) is not None:
                self._carry(source, client, events)

    def accept(self) -> None:
        """Accept clients that wait."""
        for _ in range(_ACCEPTED_MAX):
            if (oldest := self._router.too_many()) is not None and not self._evict(oldest):
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor is free: try again later
                self._accept_at = time.monotonic() + _RETRY_S
                return
            sock.setblocking(False)
            self._clients[sock] = client = self._router.join()
            self._joined[client] = time.monotonic()

    def finish(self, seconds: float) -> None:
        """Send all clients their remaining data. Disconnect all but the main client after `seconds`."""
        deadline = time.monotonic() + seconds
        while self._clients:
            now = time.monotonic()
            for sock, client in list(self._clients.items()):
                if self._router.is_done(client) or (now >= deadline and client is not self._router.main):
                    self._drop(sock)
            self._watch_clients()
            if self._clients:
                self.carry(self._watched.wait(deadline - now if now < deadline else None))

    def close(self) -> None:
        """Disconnect all clients."""
        for sock in list(self._clients):
            self._drop(sock)

    def _watch_clients(self) -> None:
        for sock, client in self._clients.items():
            wanted = EVENT_READ if self._router.wants(client) else 0
            self._watched.watch(sock, wanted | (EVENT_WRITE if self._router.to_client(client) else 0))

    def _carry(self, sock: socket.socket, client: Client, events: int) -> None:
        if events & EVENT_READ and (size := self._router.wants(client)):
            data = receive(sock, size)
            if data == b"":
                self._drop(sock)
                return
            self._router.from_client(client, data or b"")
        if events & EVENT_WRITE:
            try:
                send(sock, self._router.to_client(client), lambda count: self._router.sent_to_client(client, count))
            except GuestError:
                self._drop(sock)
                return
        if self._router.is_done(client):
            self._drop(sock)

    def _evict(self, client: Client) -> bool:
        """Disconnect a client without a request. If it has just connected, stop accepting for a while and return False."""
        until = self._joined[client] + _PATIENCE_S
        if time.monotonic() < until:
            self._accept_at = until
            return False
        for sock in [sock for sock, known in self._clients.items() if known is client]:
            self._drop(sock)
        return True

    def _drop(self, sock: socket.socket) -> None:
        """Remove a client and close its socket."""
        client = self._clients.pop(sock)
        self._joined.pop(client, None)
        self._router.leave(client)
        self._watched.close(sock)
