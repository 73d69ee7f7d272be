"""Requests of a program for a connection: by HTTP, by SOCKS 5, or by an address that stands for a name. Pure."""

from __future__ import annotations

from typing import Protocol

from rootdisk.network.hosts import Refused, parse_authority
from runner.network import http, socks, tls
from runner.network.guards import HTTP_PORT, TLS_PORT, Failure, Guard, HttpGuard, Insertion, Target, guard_for

ASKED_MAX = 200


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


class ByAddress:
    """A connection to an address that stands for a name."""

    asked, out = "", b""

    def __init__(self, name: str, port: int, secrets: Insertion | None = None) -> None:
        self.target: Target | None = Target(name, port)
        self._target = Target(name, port)
        self._secrets = secrets

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
        return guard_for(self._target, self._secrets)


class ByProxy:
    """A dialogue in HTTP or SOCKS, which the first byte decides."""

    def __init__(self, secrets: Insertion | None = None) -> None:
        self._secrets = secrets
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
        self._guard = guard_for(self.target, self._secrets)
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
            self._guard = guard_for(self.target, self._secrets)
            return True
        host, port, path = http.absolute_target(request.target)
        self.target = Target(host, port)
        self._is_absolute = True
        self._guard = self._secrets.absolute(self.target, request, path) if self._secrets is not None else None
        if self._guard is None:
            requests = http.Requests(host, port)
            self._guard = HttpGuard(requests, requests.begin(request, path))
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
