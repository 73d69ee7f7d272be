"""TLS with a registry inside of TLS with a proxy."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeVar

_TLS_BYTES = 64 << 10

T = TypeVar("T")


class TlsInTls:
    """TLS with a server inside of TLS with a proxy; the ssl module does not wrap a socket twice."""

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        self._outer, self._arrived, self._leaving = outer, ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_hostname=host)
        self.settimeout, self.close = outer.settimeout, outer.close

    def do_handshake(self) -> None:
        """Check who the server is."""
        self._run(self._tls.do_handshake)

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all of `data`."""
        view = memoryview(data)
        while view:
            piece = view[:_TLS_BYTES]
            view = view[self._run(lambda piece=piece: self._tls.write(piece)) :]  # type: ignore[misc]

    def recv(self, max_bytes: int) -> bytes:
        """Return up to `max_bytes` that have arrived, b"" at the end."""
        try:
            return self._run(lambda: self._tls.read(max_bytes))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # few say goodbye; lengths are checked above, as with sockets
            return b""

    def _run(self, action: Callable[[], T]) -> T:
        """Call `action` until it has what it needs."""
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                pass
            finally:
                if data := self._leaving.read():
                    self._outer.sendall(data)
            if data := self._outer.recv(_TLS_BYTES):
                self._arrived.write(data)
            else:
                self._arrived.write_eof()
