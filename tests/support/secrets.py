"""A host that gets a secret over TLS, and a program's side of TLS inside a guest's stream."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import trustme

from runner.network import authority
from runner.network.guards import Target
from runner.network.insertion import SecretInsertion
from runner.network.intercept import contexts
from runner.network.secrets import Place, Secret, Secrets
from tests.support.network import LIMIT_S, Guest

Answer = Callable[[bytes], bytes]


class TlsHost:
    """Answers each request of HTTP with what `answer` makes of it; keeps what it has seen. One answer that has b"" ends a connection."""

    def __init__(
        self, folder: Path, answer: Answer, *, names: Sequence[str] = ("app.test",), is_tls: bool = True
    ) -> None:
        ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        ca.cert_pem.write_to_path(self.ca_file)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if is_tls else None
        if self._context is not None:
            ca.issue_cert(*names).configure_cert(self._context)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.seen: list[bytes] = []
        self.raw = 0  # connections
        self._answer = answer
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.raw += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock = self._context.wrap_socket(plain, server_side=True) if self._context is not None else plain
            with sock:
                data = b""
                while True:
                    while b"\r\n\r\n" not in data:
                        piece = sock.recv(1 << 16)
                        if not piece:
                            return
                        data += piece
                    head, _, data = data.partition(b"\r\n\r\n")
                    self.seen.append(head)
                    answer = self._answer(head)
                    for part in answer.split(b"|"):
                        sock.sendall(part)
                        time.sleep(0.02 if b"|" in answer else 0)
                    if not answer or b"Connection: close" in head:
                        return

    def close(self) -> None:
        self.listener.close()


class Program:
    """TLS to `name` through CONNECT."""

    def __init__(
        self,
        inside: Guest,
        port: int,
        trusted: str | None,
        name: str = "app.test",
        host: str = "app.test",
        protocols: Sequence[str] = (),
    ) -> None:
        context = ssl.create_default_context(cadata=trusted) if trusted else ssl._create_unverified_context()
        if protocols:
            context.set_alpn_protocols(list(protocols))
        self._guest, self.number = inside, inside.open()
        self._is_ended = False
        inside.say(self.number, f"CONNECT {host}:{port} HTTP/1.1\r\n\r\n".encode())
        inside.until(self.number, b"established\r\n\r\n")
        inside.inbox[self.number].clear()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._until(self.tls.do_handshake)

    def _until(self, step: Callable[[], object]) -> object:
        limit = time.monotonic() + LIMIT_S
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                if data := self._outgoing.read():
                    self._guest.say(self.number, data)
                assert time.monotonic() < limit
                self._guest.hear()
                if not self._is_ended:
                    self._incoming.write(bytes(self._guest.inbox[self.number]))
                self._guest.inbox[self.number].clear()
                if self.number in self._guest.ended and not self._is_ended:
                    self._is_ended = True
                    self._incoming.write_eof()
            finally:
                if data := self._outgoing.read():
                    self._guest.say(self.number, data)

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self._guest.say(self.number, self._outgoing.read())

    def until(self, end: bytes) -> bytes:
        """What has come, as soon as it ends so."""
        got = b""
        while not got.endswith(end):
            piece = self._read()
            if not piece:
                break
            got += piece
        return got

    def rest(self) -> bytes:
        """All that comes."""
        return self.until(b"\0never\0")

    def _read(self) -> bytes:
        try:
            data = self._until(lambda: self.tls.read(1 << 16))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        assert isinstance(data, bytes)
        return data

    def ask(self, request: bytes, end: bytes) -> bytes:
        self.say(request)
        return self.until(end)


def secret(
    value: str, shown: str, port: int, *, name: str = "TOKEN", host: str = "app.test", is_tls: bool = True
) -> Secret:
    return Secret(name, (Place(Target(host, port), is_tls),), shown, value)


@contextlib.contextmanager
def guest_with(secrets: Sequence[Secret], allow: Sequence[str], ca_file: Path | None) -> Iterator[tuple[Guest, str]]:
    """A guest with secrets, and the certificate that its programs trust."""
    names = [str(place.target.host) for one in secrets for place in one.places]
    certificate, server = authority.make(names)
    insertion = SecretInsertion(
        Secrets(tuple(secrets), certificate, server), contexts(server, str(ca_file) if ca_file else None)
    )
    own = {"app.test": "127.0.0.1", "other.test": "127.0.0.1"}
    rules = [*allow, *(place.target.text for one in secrets for place in one.places)]
    running = Guest(rules, own, (), insertion)
    try:
        yield running, certificate
    finally:
        running.close()
