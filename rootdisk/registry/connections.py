"""Connections to registries, directly or through a proxy: to addresses that were checked (addresses.py), with deadlines.

http.client writes requests and parses responses. This module decides where its sockets lead.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

from rootdisk.registry.addresses import Reach
from rootdisk.registry.deadlines import Watch
from rootdisk.registry.dial import Place, dial
from rootdisk.urls import Url, parse_url

_TLS_BYTES = 64 << 10
_REFUSED_S = 1.0  # for the answer of a server that takes no more: it was sent before, or never is

T = TypeVar("T")


class ProxyFailed(OSError):
    """A proxy does not lead on: it answers a `status`, or there is a `__cause__`."""

    def __init__(self, place: str, status: int = 0) -> None:
        super().__init__(place)
        self.place, self.status = place, status


class Payload(Protocol):
    """The body of a request: pieces of a known total length, from the start at each iteration."""

    def __len__(self) -> int:
        """Return the total length in bytes."""

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the pieces."""


class Proxy(NamedTuple):
    """A proxy, as `proxy_for` names it."""

    url: Url
    authorization: str  # the value of Proxy-Authorization, or ""

    @classmethod
    def parse(cls, text: str) -> Proxy:
        """Split `scheme://USER:PASSWORD@HOST:PORT`."""
        scheme, _, rest = text.partition("://")
        user, at, place = rest.rpartition("@")
        secret = b64encode(unquote(user).encode()).decode()
        return cls(parse_url(f"{scheme}://{place}"), f"Basic {secret}" if at else "")

    @property
    def headers(self) -> dict[str, str]:
        """The headers for the proxy itself."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


class Ways(NamedTuple):
    """Values that all connections of a session share."""

    watch: Watch
    reach: Reach
    context: Callable[[Url], ssl.SSLContext]  # reading the certificates takes as long as fetching a small disk
    connect_timeout_s: float


class Answer(http.client.HTTPResponse):
    """A final response. Interim ones are passed over; RFC 9110, section 15.2."""

    def begin(self) -> None:
        """Read the head."""
        super().begin()
        while 100 <= self.status < 200 and self.status != http.client.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]  # else nothing more is read
            super().begin()


class Connection(http.client.HTTPConnection):
    """A connection to the origin of a URL."""

    response_class = Answer

    def __init__(self, url: Url, proxy: Proxy | None, ways: Ways, *, home: bool) -> None:
        """Prepare it; nothing is connected yet. `home` tells whether it leads to the registry itself."""
        super().__init__(url.host, url.port, timeout=ways.connect_timeout_s)
        self.wire: socket.socket | None = None  # the outermost socket, which can be shut down
        self._url, self._proxy, self._ways, self._home = url, proxy, ways, home
        self._address = ""  # of the peer, if it was checked

    @property
    def is_usable(self) -> bool:
        """Return whether the connection is open and the other side has sent nothing, not even its end."""
        if self.sock is None or self.wire is None:
            return False
        poll = select.poll()
        poll.register(self.wire, select.POLLIN)
        return not poll.poll(0) or self._has_tickets_only()

    def _has_tickets_only(self) -> bool:
        """Take what TLS has for itself after a handshake, such as session tickets. Return whether that is all."""
        if not isinstance(self.sock, ssl.SSLSocket):
            return False
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            pass
        return False

    def connect(self) -> None:
        """Connect, with TLS if the URL wants it."""
        if self._proxy is None:
            self.wire = self.sock = self._dial(self._url.host, self._url.port, self._ways.reach)
        else:
            try:
                self._connect_proxy(self._proxy)
            except ProxyFailed:
                raise
            except (OSError, http.client.HTTPException) as err:
                raise ProxyFailed(self._proxy.url.authority) from err
        if self._url.scheme == "https":
            self._start_tls(self._url)

    def _connect_proxy(self, proxy: Proxy) -> None:
        # The user has chosen the proxy, so its address is not checked.
        self.wire = self.sock = self._dial(proxy.url.host, proxy.url.port, None)
        if proxy.url.scheme == "https":
            self._start_tls(proxy.url)
        if self._url.scheme != "https":
            return
        place = f"[{self._url.host}]" if ":" in self._url.host else self._url.host
        lines = [f"CONNECT {place}:{self._url.port} HTTP/1.1", f"Host: {place}:{self._url.port}"]
        lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = Answer(self.sock, method="CONNECT")
        try:
            with self._ways.watch.within(self.wire, self._ways.connect_timeout_s):
                answer.begin()
        finally:
            answer.close()
        if not 200 <= answer.status < 300:  # RFC 9110, section 9.3.6
            raise ProxyFailed(proxy.url.authority, answer.status)

    def _start_tls(self, url: Url) -> None:
        """Continue over TLS with the host of `url`."""
        assert self.wire is not None
        context = self._ways.context(url)
        host = url.host.removesuffix(".")  # certificates have names without it
        if isinstance(self.sock, ssl.SSLSocket):
            tls: Any = TlsInTls(self.sock, context, host)
        else:
            # Not with a handshake at once: the deadline is for the new socket.
            tls = self.wire = context.wrap_socket(self.sock, server_hostname=host, do_handshake_on_connect=False)
        self.sock = tls
        with self._ways.watch.within(self.wire, self._ways.connect_timeout_s):
            tls.do_handshake()

    def _dial(self, host: str, port: int, reach: Reach | None) -> socket.socket:
        """Resolve a name once, let `reach` choose among its addresses, and connect to one of those."""
        # As bytes: a string would be encoded by a library that takes longer to load than to ask.
        results = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM)
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        places = {
            socket.getnameinfo(place, numeric)[0]: Place(family, place)  # IPv6 addresses with their zone
            for family, *_, place in results
            if family in (socket.AF_INET, socket.AF_INET6)
        }
        if reach is not None:
            places = {address: places[address] for address in reach.choose(host, port, list(places), home=self._home)}
        address, sock = dial(places, self._ways.connect_timeout_s, self._ways.watch.stopped)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._address = address if reach is not None else ""
        return sock

    def exchange(
        self, method: str, headers: Mapping[str, str], data: bytes | Payload | None, url: Url, read_s: float
    ) -> http.client.HTTPResponse:
        """Send a request and return its response, whose head must be complete within `read_s` seconds."""
        if self.sock is None:
            self.connect()
        self.sock.settimeout(read_s)
        is_forwarded = self._proxy is not None and self._url.scheme == "http"
        self.putrequest(
            method,
            str(url) if is_forwarded else f"{url.path}{url.query}",
            skip_host=True,
            skip_accept_encoding=True,
        )
        forward = self._proxy.headers if self._proxy is not None and is_forwarded else {}
        for name, value in {"Host": url.authority, **headers, **forward}.items():
            self.putheader(name, value)
        if data is not None or method in ("POST", "PUT"):
            self.putheader("Content-Length", str(len(data or b"")))
        wire = self.wire
        assert wire is not None
        refused = self._send(wire, [data] if isinstance(data, bytes) else data or (), read_s)
        try:
            with self._ways.watch.within(wire, read_s if refused is None else _REFUSED_S):
                response = self.getresponse()
        except (OSError, http.client.HTTPException):
            if refused is not None:
                raise refused from None
            raise
        response.will_close |= refused is not None  # the server still waits for the rest of the body
        # Only after a response: an address that the name resolved to, but that is silent, need not be the registry.
        if self._home and self._address:
            self._ways.reach.arrived(self._address)
        return response

    def _send(self, wire: socket.socket, pieces: Iterable[bytes | memoryview], seconds: float) -> OSError | None:
        """Send the head and the body, each piece within `seconds`. Errors of the body itself are raised.

        Return the error if the server takes no more: it may have answered before it closed.
        """
        try:
            self.endheaders()
        except OSError as err:
            return err
        for piece in pieces:
            try:
                with self._ways.watch.within(wire, seconds):
                    self.sock.sendall(piece)
            except OSError as err:
                return err
        return None


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

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file to read from. Until it is closed too, the connection stays open, as with sockets."""
        return io.BufferedReader(_Reader(self, self._outer.makefile("rb", buffering=0)))

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


class _Reader(io.RawIOBase):
    def __init__(self, sock: TlsInTls, hold: io.RawIOBase) -> None:
        self._sock, self._hold = sock, hold

    def close(self) -> None:
        """Close it, and let the connection go."""
        self._hold.close()
        super().close()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come into `buffer`; return the bytes, 0 at the end."""
        data = self._sock.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)
