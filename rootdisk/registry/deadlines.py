"""Deadlines for waits: for the head of a response, and for more of its body.

The timeout of a socket restarts with every byte, so a server that sends a header very slowly could block its reader
forever. One thread watches all waits. It can also abort all of them at once, which a fetch over several connections needs
if one fails or the user presses Ctrl-C.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

LOOK_S = 0.1


class Watch:
    """Watches the sockets that threads wait for."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._waits: dict[_Wait, tuple[socket.socket, float]] = {}  # until when, time.monotonic()
        self._looking = False

    def stop(self) -> None:
        """Abort all current and future waits; they raise TimeoutError."""
        with self._lock:
            self.stopped.set()
            for sock, _ in self._waits.values():
                _break(sock)

    def within(self, sock: socket.socket, seconds: float) -> _Wait:
        """Shut down `sock` if the block takes longer than `seconds`.

        Raises:
            TimeoutError: It did, or the watch was stopped.
        """
        return _Wait(self, sock, seconds)

    def begin(self, wait: _Wait, sock: socket.socket, seconds: float) -> None:
        """Watch `sock` from now on; TimeoutError if the watch was stopped."""
        with self._lock:
            if self.stopped.is_set():
                raise TimeoutError("aborted")
            if not self._looking:  # it looks when the lock is free
                threading.Thread(target=self._look, name="runner watch", daemon=True).start()
                self._looking = True
            self._waits[wait] = sock, time.monotonic() + seconds

    def end(self, wait: _Wait) -> bool:
        """Watch no longer. Return false if the socket was shut down: do not trust bytes from it."""
        with self._lock:
            return self._waits.pop(wait, None) is not None and not self.stopped.is_set()

    def _look(self) -> None:
        """Shut down sockets whose deadline has passed. End if nothing is waiting."""
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                now = time.monotonic()
                for key, (sock, until) in list(self._waits.items()):
                    if now > until:
                        del self._waits[key]
                        _break(sock)
                if not self._waits:
                    self._looking = False
                    return


class _Wait:
    """A wait for a socket. A class, because there is one for each piece of a body, and a generator takes twice as long."""

    __slots__ = "_seconds", "_sock", "_watch"

    def __init__(self, watch: Watch, sock: socket.socket, seconds: float) -> None:
        self._watch, self._sock, self._seconds = watch, sock, seconds

    def __enter__(self) -> None:
        self._watch.begin(self, self._sock, self._seconds)

    def __exit__(self, *_: object) -> None:
        if not self._watch.end(self):
            raise TimeoutError("timed out") from None


def _break(sock: socket.socket) -> None:
    """Wake all readers and writers of a socket. SSLSocket.shutdown would return bytes that are still encrypted."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
