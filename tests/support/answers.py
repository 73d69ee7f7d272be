"""A server of HTTP on the host's loopback that sends and takes as much as it is asked to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        size = int(self.path.rpartition("/")[2]) if self.path.startswith("/large/") else 0
        self._answer(bytes(size) or f"path {self.path}".encode())

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        self._answer(b"took " + self.headers["Content-Length"].encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: object) -> None:
        seen = self.server.seen  # type: ignore[attr-defined]
        seen.append(self.path)


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # a connection that does not fit comes a second later
    daemon_threads = True


@contextlib.contextmanager
def answering() -> Iterator[ThreadingHTTPServer]:
    """The server; `seen` has the paths that were asked for."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
