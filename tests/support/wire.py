"""A server on the loopback that a test speaks for, byte by byte.

def answer(connection: Wire) -> None:
    connection.head(); connection.send(b"HTTP/1.1 204 \\r\\n\\r\\n")

with run_wire(answer) as name: …          name: 127.0.0.1:34567
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import trustme


class Wire:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def head(self) -> bytes:
        """The head of the next request, b"" at the end of the connection."""
        while b"\r\n\r\n" not in self._rest:
            if not (piece := self.sock.recv(65536)):
                return b""
            self._rest += piece
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head

    def body(self, head: bytes) -> int:
        """Take the body of a request; return how many of its bytes came."""
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        count, self._rest = min(len(self._rest), length), b""
        while count < length and (piece := self.sock.recv(min(1 << 20, length - count))):
            count += len(piece)
        return count

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, status: str, body: bytes = b"", *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        self.send("\r\n".join(lines).encode() + body)


@contextlib.contextmanager
def run_wire(
    speak: Callable[[Wire], None], authority: trustme.CA | None = None, host: str = "127.0.0.1"
) -> Iterator[str]:
    """Call `speak` with each connection, which is closed afterwards; over TLS with a certificate for `host`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if authority is not None:
        authority.issue_cert(host).configure_cert(context)

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            speak(Wire(sock if authority is None else context.wrap_socket(sock, server_side=True)))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
