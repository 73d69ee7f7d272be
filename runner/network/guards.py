"""Checks of what a program sends to a server; with secrets, of what the server answers too. Pure."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

from rootdisk.network.hosts import Host, Refused, host_text
from runner.network import http, socks, tls

TLS_PORT, HTTP_PORT = 443, 80


class Unusable(Exception):
    """A server of whose answers nothing can be made; the text says why, on one line."""


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
        """Return HOST:PORT."""
        return f"{host_text(self.host)}:{self.port}"


class Guard(Protocol):
    """Checks what a program sends before it goes to the server."""

    is_open: bool  # nothing more is checked

    def feed(self, data: bytearray, limit: int) -> bytes:
        """Take bytes for the server from `data`; Refused if they break a rule."""

    def refuse(self, failure: Failure, text: str) -> bytes:
        """Return what the program gets to hear if its bytes were refused."""


@runtime_checkable
class Filter(Guard, Protocol):
    """A guard through which the answers go too, to the end of the connection."""

    for_guest: bytearray

    @property
    def used(self) -> tuple[str, ...]:
        """The names of secrets that were inserted."""

    @property
    def is_holding(self) -> bool:
        """True if bytes of the program wait for the host to be ready, or for its answers."""

    @property
    def is_untold(self) -> bool:
        """True if the host failed before the program can be told why."""

    def back(self, data: bytes) -> None:
        """Take bytes of the server: what the guest gets is added to `for_guest`. Unusable if nothing can be made of them."""

    def end(self) -> bytes:
        """Return what the server gets last: the program sends nothing more."""

    def finish(self) -> None:
        """Add what is left to `for_guest`: the server sends nothing more."""


class Insertion(Protocol):
    """The secrets of a sandbox, by the place that they are for."""

    def guard(self, target: Target) -> Filter | None:
        """Return what inserts secrets into a connection to `target`; None if none is for it."""

    def absolute(self, target: Target, request: http.Request, path: bytes) -> Filter | None:
        """Return the same for a request that came to a proxy, which is not sent yet."""


class TlsGuard:
    """Let TLS to one host pass: its server name must be that host's."""

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

    def refuse(self, failure: Failure, text: str) -> bytes:
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

    def refuse(self, failure: Failure, text: str) -> bytes:
        """Return a response, if none is on its way already."""
        return http.answer(failure.value[0], text) if not self._requests.count else b""


def guard_for(target: Target, secrets: Insertion | None) -> Guard | None:
    """Return what checks the bytes of a connection by its port: TLS on 443, HTTP on 80, nothing on others; and what inserts secrets."""
    if secrets is not None and (inserting := secrets.guard(target)) is not None:
        return inserting
    if target.port == TLS_PORT and isinstance(target.host, str):
        return TlsGuard(target.host)
    if target.port == HTTP_PORT:
        return HttpGuard(http.Requests(target.host, target.port))
    return None
