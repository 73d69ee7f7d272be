"""Requests of a program for a connection: by HTTP, by SOCKS 5, or by an address that stands for a name. Pure."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol

from rootdisk.network.hosts import Host, Refused, host_text, parse_authority
from runner.network import http, socks, tls

TLS_PORT, HTTP_PORT = 443, 80
ASKED_MAX = 200


class Failure(Enum):
    """Reasons for no connection, each with a status of HTTP and a code of SOCKS."""

    REFUSED = ("403 Forbidden", socks.NOT_ALLOWED)
    UNKNOWN = ("502 Bad Gateway", socks.UNREACHABLE)
    UNREACHABLE = ("502 Bad Gateway", socks.CONNECTION_REFUSED)
    LATE = ("504 Gateway Timeout", socks.UNREACHABLE)


class Target(NamedTuple):
    """The host and port that a program wants."""

    host: Host
    port: int

    @property
    def text(self) -> str:
        """HOST:PORT."""
        return f"{host_text(self.host)}:{self.port}"


class Guard(Protocol):
    """Checks what a program sends before it goes to the server."""

    is_open: bool  # nothing more is checked

    def feed(self, data: bytearray, limit: int) -> bytes:
        """Take bytes for the server from `data`; Refused if they break a rule."""

    def refuse(self, text: str) -> bytes:
        """Return what the program gets to hear if its bytes were refused."""


class Dialogue(Protocol):
    """The first words of a connection."""

    target: Target | None  # once it is known, also of what is refused
    asked: str  # what the program has said, if it is not a target
    out: bytes  # for the program

    def hear(self, data: bytearray) -> bool:
        """Take a program's words from `data`. Return whether the target is known; Refused if they break a rule."""

    def agree(self) -> bytes:
        """Return what the program gets to hear when it is connected."""

    def refuse(self, failure: Failure, text: str) -> bytes:
        """Return what it gets to hear if it is not."""

    def guard(self) -> Guard | None:
        """Return what checks the bytes that follow."""


class TlsGuard:
    """Lets TLS to one host pass: the name that it asks for has to be that host's."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.is_open = False

    def feed(self, data: bytearray, limit: int) -> bytes:
        """Take nothing before the first message is complete and right."""
        if not self.is_open:
            name = tls.server_name(data)
            if name is None:
                return b""
            if name != self._host:
                raise Refused(f"the TLS server name is {host_text(name)}, the connection is to {host_text(self._host)}")
            self.is_open = True
        piece = bytes(data[:limit])
        del data[: len(piece)]
        return piece

    def refuse(self, text: str) -> bytes:
        """Return an alert of TLS."""
        return tls.ACCESS_DENIED


class HttpGuard:
    """Lets requests to one host pass."""

    is_open = False

    def __init__(self, requests: http.Requests, first: bytes = b"") -> None:
        self._requests = requests
        self._first = first

    def feed(self, data: bytearray, limit: int) -> bytes:
        """Take requests, checked and rewritten."""
        first, self._first = self._first, b""
        return first or self._requests.feed(data, limit)

    def refuse(self, text: str) -> bytes:
        """Return a response, if none is on its way already."""
        return http.answer(Failure.REFUSED.value[0], text) if not self._requests.count else b""


def guard_for(target: Target) -> Guard | None:
    """Return what checks the bytes of a connection by its port: TLS on 443, HTTP on 80, nothing on others."""
    if target.port == TLS_PORT and isinstance(target.host, str):
        return TlsGuard(target.host)
    if target.port == HTTP_PORT:
        return HttpGuard(http.Requests(target.host, target.port))
    return None


class ByAddress:
    """A connection to an address that stands for a name."""

    asked, out = "", b""

    def __init__(self, name: str, port: int) -> None:
        self.target: Target | None = Target(name, port)
        self._target = Target(name, port)

    def hear(self, data: bytearray) -> bool:
        """Know the target from the start."""
        return True

    def agree(self) -> bytes:
        """Say nothing."""
        return b""

    def refuse(self, failure: Failure, text: str) -> bytes:
        """Say what its port's protocol has for it."""
        if self._target.port == TLS_PORT:
            return tls.ACCESS_DENIED
        return http.answer(failure.value[0], text) if self._target.port == HTTP_PORT else b""

    def guard(self) -> Guard | None:
        """Check by the port."""
        return guard_for(self._target)


class ByProxy:
    """HTTP or SOCKS, by the first byte."""

    def __init__(self) -> None:
        self.target: Target | None = None
        self.asked, self.out = "", b""
        self._is_socks = self._is_greeted = False
        self._guard: Guard | None = None
        self._is_absolute = False

    def hear(self, data: bytearray) -> bool:
        """Take one request of HTTP, or two messages of SOCKS."""
        if not data:
            return False
        if data[0] == 4 and not self._is_greeted:
            raise Refused("SOCKS 4: use socks5h://")
        self._is_socks |= data[0] == 5
        return self._hear_socks(data) if self._is_socks else self._hear_http(data)

    def _hear_socks(self, data: bytearray) -> bool:
        if not self._is_greeted:
            offers = socks.take_greeting(data)
            if offers is None:
                return False
            if not offers:
                self.out = socks.NO_METHOD
                raise Refused("SOCKS with a password")
            self._is_greeted = True
            self.out = socks.GREETING
        request = socks.take_request(data)
        if request is None:
            return False
        command, host, port = request
        self.target = Target(host, port)
        if command != 1:
            raise Refused("SOCKS, but not CONNECT")
        self._guard = guard_for(self.target)
        return True

    def _hear_http(self, data: bytearray) -> bool:
        request = http.take_head(data)
        if request is None:
            return False
        self.asked = request.target[:ASKED_MAX].decode("ascii")
        if request.method == b"CONNECT":
            host, port = parse_authority(request.target.decode("ascii"))
            self.target = Target(host, port)
            for value in request.values(b"host"):
                if parse_authority(value.decode("ascii", "replace"), port)[0] != host:
                    raise Refused("the Host field says another host than CONNECT")
            self._guard = guard_for(self.target)
            return True
        host, port, path = http.absolute_target(request.target)
        self.target = Target(host, port)
        requests = http.Requests(host, port)
        first = requests.begin(request, path)
        self._is_absolute = True
        self._guard = HttpGuard(requests, first)
        return True

    def agree(self) -> bytes:
        """Answer CONNECT, of either protocol; an absolute request gets its server's answer."""
        if self._is_socks:
            return socks.reply(socks.DONE)
        return b"" if self._is_absolute else b"HTTP/1.1 200 Connection established\r\n\r\n"

    def refuse(self, failure: Failure, text: str) -> bytes:
        """Answer with a status of HTTP, or a code of SOCKS."""
        status, code = failure.value
        if self._is_socks:
            return socks.reply(code) if self._is_greeted else b""
        return http.answer(status, text)

    def guard(self) -> Guard | None:
        """Check by the port, or the rest of a request."""
        return self._guard
