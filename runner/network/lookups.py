"""Look up the addresses of names in threads, as the host does: a look-up may wait for a name server for a long time."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from rootdisk.network.hosts import Address

THREADS_MAX = 8
_ADDRESSES_MAX = 16


class Found(NamedTuple):
    """The answer to a question."""

    who: object  # as it was given with the question
    addresses: tuple[Address, ...]
    error: str


class Lookups:
    """Questions and answers; `wake` is readable when there is an answer."""

    def __init__(self) -> None:
        self.wake, self._theirs = socket.socketpair()
        self.wake.setblocking(False)
        self._theirs.setblocking(False)
        self._questions: queue.SimpleQueue[tuple[object, str, int]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Found] = queue.SimpleQueue()
        self._threads = 0
        self.waiting = 0  # questions without an answer, also those that nobody waits for any more

    def ask(self, who: object, name: str, port: int) -> None:
        """Ask for the addresses of `name`."""
        self.waiting += 1
        if self._threads < min(self.waiting, THREADS_MAX):
            self._threads += 1
            threading.Thread(target=self._serve, daemon=True).start()
        self._questions.put((who, name, port))

    def answers(self) -> list[Found]:
        """Return the answers that have come."""
        with contextlib.suppress(BlockingIOError):
            self.wake.recv(4096)
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._answers.get_nowait())
        self.waiting -= len(found)
        return found

    def _serve(self) -> None:
        while True:
            who, name, port = self._questions.get()
            self._answers.put(Found(who, *_look_up(name, port)))
            with contextlib.suppress(OSError):  # full: it is awake
                self._theirs.send(b"\0")


def _look_up(name: str, port: int) -> tuple[tuple[Address, ...], str]:
    try:
        answers = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as err:
        return (), getattr(err, "strerror", None) or "cannot be looked up"
    addresses: dict[Address, None] = {}
    for family, _, _, _, place in answers[:_ADDRESSES_MAX]:
        text = str(place[0]).partition("%")[0]
        addresses[IPv4Address(text) if family == socket.AF_INET else IPv6Address(text)] = None
    return tuple(addresses), ""
