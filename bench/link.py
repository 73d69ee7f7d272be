"""A link as slow as wanted before a server on loopback: so many bytes a second over all connections, and a delay."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator

PIECE_BYTES = 64 << 10
QUEUED_PIECES = 64  # on the way, each connection


@contextlib.contextmanager
def link(server: str, bytes_per_s: float, latency_s: float) -> Iterator[str]:
    """The name, host:port, under which `server` (host:port) is reached over the link.

    Both ways have the delay; only what the server gives is counted.
    """
    host, _, port = server.rpartition(":")
    rate = _Rate(bytes_per_s)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):  # closed: the end
                while True:
                    near, _ = listening.accept()
                    far = socket.create_connection((host, int(port)))
                    for sock in (near, far):
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    _start(_carry, near, far, None, latency_s)
                    _start(_carry, far, near, rate, latency_s)

        _start(accept)
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


class _Rate:
    """Return the time at which the next bytes are through."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free = 0.0
        self._lock = threading.Lock()

    def through(self, count: int) -> float:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self._bytes_per_s
            return self._free


def _carry(source: socket.socket, sink: socket.socket, rate: _Rate | None, latency_s: float) -> None:
    """Forward `source` to `sink` until it ends, each piece after the delay."""
    waiting: queue.Queue[tuple[float, bytes]] = queue.Queue(QUEUED_PIECES)
    _start(_deliver, waiting, sink)
    data = b"-"
    while data:
        try:
            data = source.recv(PIECE_BYTES)
        except OSError:
            data = b""
        through = rate.through(len(data)) if rate else time.monotonic()
        waiting.put((through + latency_s, data))


def _deliver(waiting: queue.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
    data = b"-"
    while data:
        when, data = waiting.get()
        time.sleep(max(0.0, when - time.monotonic()))
        with contextlib.suppress(OSError):  # who has left early still has its pieces taken
            if data:
                sink.sendall(data)
            else:
                sink.shutdown(socket.SHUT_WR)


def _start(target: object, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]
