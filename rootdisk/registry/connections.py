"""Connections to registries, directly or through a proxy: to addresses that were checked (addresses.py), with deadlines.

messages.py writes requests and parses answers. This module decides where their sockets lead.
"""

from __future__ import annotations

import itertools
import select
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote

from rootdisk.parsing.urls import Url, parse_url
from rootdisk.registry.addresses import Reach
from rootdisk.registry.deadlines import Watch
from rootdisk.registry.dial import Place, dial
from rootdisk.registry.messages import Answer, NotHttp, request_head

if TYPE_CHECKING:  # and loaded where TLS is used
    import ssl

_REFUSED_S = 1.0  # for the answer of a server that takes no more: it was sent before, or never is


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
        from base64 import b64encode

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


class Connection:
    """A connection to the origin of a URL. Its sockets wait without end: a `Watch` has all deadlines."""

    def __init__(self, url: Url, proxy: Proxy | None, ways: Ways, *, home: bool) -> None:
        """Prepare it; nothing is connected yet. `home` tells whether it leads to the registry itself."""
        self.sock: Any = None  # what the messages go over: the same socket, or TLS on it
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
        if type(self.sock) is socket.socket:
            return False
        import ssl

        if not isinstance(self.sock, ssl.SSLSocket):
            return False
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            self.sock.settimeout(None)
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close it."""
        sock, self.sock, self.wire = self.sock, None, None
        if sock is not None:
            sock.close()

    def connect(self) -> None:
        """Connect, with TLS if the URL wants it."""
        if self._proxy is None:
            self.wire = self.sock = self._dial(self._url.host, self._url.port, self._ways.reach)
        else:
            try:
                self._connect_proxy(self._proxy)
            except ProxyFailed:
                raise
            except (OSError, NotHttp) as err:
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
        with self._ways.watch.within(self.wire, self._ways.connect_timeout_s):
            answer = Answer(self.sock, "CONNECT")
        if not 200 <= answer.status < 300:  # RFC 9110, section 9.3.6
            raise ProxyFailed(proxy.url.authority, answer.status)

    def _start_tls(self, url: Url) -> None:
        """Continue over TLS with the host of `url`."""
        import ssl

        assert self.wire is not None
        context = self._ways.context(url)
        host = url.host.removesuffix(".")  # certificates have names without it
        if isinstance(self.sock, ssl.SSLSocket):
            from rootdisk.registry.tls_in_tls import TlsInTls

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
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._address = address if reach is not None else ""
        return sock

    def exchange(
        self, method: str, headers: Mapping[str, str], data: bytes | Payload | None, url: Url, read_s: float
    ) -> Answer:
        """Send a request and return its answer, whose head must be complete within `read_s` seconds."""
        if self.sock is None:
            self.connect()
        fields = {"Host": url.authority, **headers}
        target = f"{url.path}{url.query}"
        if self._proxy is not None and self._url.scheme == "http":
            target, fields = str(url), fields | self._proxy.headers
        if data is not None or method in ("POST", "PUT"):
            fields["Content-Length"] = str(len(data or b""))
        head = request_head(method, target, fields)
        wire = self.wire
        assert wire is not None
        # A small body goes in one packet with its head.
        pieces = [head + data] if isinstance(data, bytes) else itertools.chain([head], data or ())
        refused = self._send(wire, pieces, read_s)
        try:
            with self._ways.watch.within(wire, read_s if refused is None else _REFUSED_S):
                answer = Answer(self.sock, method)
        except (OSError, NotHttp):
            if refused is not None:
                raise refused from None
            raise
        answer.stays &= refused is None  # else the server still waits for the rest of the body
        # Only after a response: an address that the name resolved to, but that is silent, need not be the registry.
        if self._home and self._address:
            self._ways.reach.arrived(self._address)
        return answer

    def _send(self, wire: socket.socket, pieces: Iterable[bytes | memoryview], seconds: float) -> OSError | None:
        """Send the head and the body, each piece within `seconds`. Errors of the body itself are raised.

        Return the error if the server takes no more: it may have answered before it closed.
        """
        for piece in pieces:
            try:
                with self._ways.watch.within(wire, seconds):
                    self.sock.sendall(piece)
            except OSError as err:
                return err
        return None
