"""Processes that use the server of a disk: keepers and pulls, and what they are told."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from runner.store import filling

_ASK_NEXT_S = 0.5  # between questions to keepers
_ASK_AGAIN_S = 10.0  # until the same keeper is asked again
_NEVER = float("-inf")


class Client:
    """A process that uses the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_attached = False  # keeps the server alive, and is told what happens
        self.pulls = False  # waits for the complete disk
        self.asked_at = _NEVER  # whether it can fetch what the server cannot (monotonic seconds)


class Clients:
    """The connections of all processes that use the server."""

    def __init__(self, poll: select.epoll, on_drop: Callable[[], None]) -> None:
        """`poll` reports the events of the sockets; `on_drop` is called when a client has gone."""
        self._poll, self._on_drop = poll, on_drop
        self._by_fd: dict[int, Client] = {}
        self._asked_at = _NEVER

    def __bool__(self) -> bool:
        return bool(self._by_fd)

    def get(self, fd: int) -> Client | None:
        """Return the client with the socket `fd`, if there is one."""
        return self._by_fd.get(fd)

    @property
    def are_attached(self) -> bool:
        """Return whether a sandbox uses the disk."""
        return any(client.is_attached for client in self._by_fd.values())

    @property
    def pulling(self) -> list[Client]:
        """The clients that wait for the complete disk."""
        return [client for client in self._by_fd.values() if client.pulls]

    def add(self, sock: socket.socket) -> None:
        """Take a new connection."""
        sock.setblocking(False)
        self._by_fd[sock.fileno()] = Client(sock)
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def drop(self, client: Client) -> None:
        """Close a connection."""
        del self._by_fd[client.sock.fileno()]
        client.sock.close()
        self._on_drop()

    def say(self, client: Client, message: Mapping[str, Any]) -> None:
        """Send a message. A client that is gone is dropped."""
        if client.sock.fileno() not in self._by_fd:
            return
        try:
            filling.send(client.sock, message)
        except BlockingIOError:  # it does not read
            pass
        except OSError:
            self.drop(client)

    def ask_next(self, message: Mapping[str, Any]) -> None:
        """Send a message to the keeper that has not been asked for the longest time: each again after a pause, one at a time."""
        now = time.monotonic()
        attached = [client for client in self._by_fd.values() if client.is_attached]
        client = min(attached, key=lambda each: each.asked_at, default=None)
        if client is not None and now >= max(client.asked_at + _ASK_AGAIN_S, self._asked_at + _ASK_NEXT_S):
            client.asked_at = self._asked_at = now
            self.say(client, message)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message to all keepers."""
        for client in list(self._by_fd.values()):
            if client.is_attached:
                self.say(client, message)


class Errand:
    """A read of a process that needs a part of the disk in the file."""

    def __init__(self, clients: Clients, client: Client, reason: Callable[[], str]) -> None:
        """`reason` tells why reads have failed."""
        self._clients, self._client, self._reason = clients, client, reason

    def answer(self, fd: int, cookie: int, offset: int, length: int) -> None:
        """Say that the part is there."""
        self._clients.say(self._client, {"is": "there"})

    def refuse(self, cookie: int, error: int) -> None:
        """Say why it is not."""
        self._clients.say(self._client, {"is": "failed", "error": self._reason(), "hint": ""})
