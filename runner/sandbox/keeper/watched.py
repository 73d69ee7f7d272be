"""Wait for events of several sockets and pipes at once."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from typing import IO

from rootdisk.system import process
from runner.channel.messages import GuestError

Source = socket.socket | IO[bytes]
_WAIT_MAX_S = 3600.0  # for a single call; the kernel accepts at most 24 days


class Watched:
    """A set of sockets and the events to wait for. A removed socket is never reported."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, sock: Source, events: int) -> None:
        """Wait for `events` of `sock` from now on; 0 removes it."""
        key = self._selector.get_map().get(sock)
        if key is None:
            if events:
                self._selector.register(sock, events)
        elif not events:
            self._selector.unregister(sock)
        elif key.events != events:
            self._selector.modify(sock, events)

    def close(self, sock: socket.socket) -> None:
        """Remove a socket and close it."""
        self.watch(sock, 0)
        sock.close()

    def wait(self, timeout_s: float | None) -> dict[Source, int]:
        """Wait for events, up to `timeout_s` seconds. Return the events by socket."""
        wait_s = _WAIT_MAX_S if timeout_s is None else min(max(0.0, timeout_s), _WAIT_MAX_S)
        return {key.fileobj: events for key, events in self._selector.select(wait_s)}  # type: ignore[misc]

    def end(self) -> None:
        """Release the selector."""
        self._selector.close()


def receive(source: Source, size: int) -> bytes | None:
    """Return up to `size` bytes that have arrived; None if there are none, b"" at the end."""
    try:
        return source.recv(size) if isinstance(source, socket.socket) else os.read(source.fileno(), size)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def send(sock: socket.socket, data: bytearray, sent: Callable[[int], None]) -> None:
    """Send as much as possible and report it to `sent`.

    Raises:
        GuestError: The peer has closed the connection.
    """
    try:
        if data:
            sent(sock.send(data))
    except BlockingIOError:
        pass
    except OSError as err:
        raise GuestError("") from err


@contextlib.contextmanager
def signals() -> Iterator[socket.socket]:
    """Yield a socket that becomes readable after SIGTERM, SIGINT or SIGHUP, which stop the sandbox."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        for name in process.heard(signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(-1)
