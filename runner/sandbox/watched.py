"""Sockets and pipes that a process waits for at once."""

from __future__ import annotations

import os
import selectors
import socket
from typing import IO

Source = socket.socket | IO[bytes]
_WAIT_MAX_S = 3600.0  # for one call of the kernel, which takes no more than 24 days


class Watched:
    """Which events are waited for, by socket; none of what has been forgotten is ever reported."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, sock: Source, events: int) -> None:
        """Wait for `events` of `sock` from now on; 0 for none at all."""
        key = self._selector.get_map().get(sock)
        if key is None:
            if events:
                self._selector.register(sock, events)
        elif not events:
            self._selector.unregister(sock)
        elif key.events != events:
            self._selector.modify(sock, events)

    def close(self, sock: socket.socket) -> None:
        """Forget a socket and close it."""
        self.watch(sock, 0)
        sock.close()

    def wait(self, timeout_s: float | None) -> dict[Source, int]:
        wait_s = _WAIT_MAX_S if timeout_s is None else min(max(0.0, timeout_s), _WAIT_MAX_S)
        return {key.fileobj: events for key, events in self._selector.select(wait_s)}  # type: ignore[misc]

    def end(self) -> None:
        self._selector.close()


def receive(source: Source, size: int) -> bytes | None:
    """What has come; None for nothing, b"" at the end."""
    try:
        return source.recv(size) if isinstance(source, socket.socket) else os.read(source.fileno(), size)
    except BlockingIOError:
        return None
    except OSError:
        return b""
