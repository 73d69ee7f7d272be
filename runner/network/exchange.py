"""HTTP with the host of a secret: the secret goes into requests, the placeholder into answers. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from runner.network import http
from runner.network.echoes import Echoes
from runner.network.guards import Failure, HttpGuard, Target
from runner.network.responses import Responses
from runner.network.secrets import Secret

_BASIC = re.compile(rb"(basic +)([A-Za-z0-9+/=]+)", re.IGNORECASE)


class Inserter:
    """Puts secrets into the requests of one connection."""

    def __init__(self, secrets: Sequence[Secret]) -> None:
        self._pairs = [(secret.placeholder.encode(), secret.value.encode(), secret.name) for secret in secrets]
        self._used: dict[str, None] = {}

    @property
    def used(self) -> tuple[str, ...]:
        """The names of secrets that were inserted."""
        return tuple(self._used)

    def value(self, value: bytes) -> bytes:
        """Return a field's value with secrets; also inside `Basic` of RFC 7617."""
        if (match := _BASIC.fullmatch(value)) is not None:
            try:
                inside = base64.b64decode(match[2], validate=True)
            except binascii.Error:
                return value
            changed = self._insert(inside)
            return value if changed == inside else match[1] + base64.b64encode(changed)
        return self._insert(value)

    def _insert(self, data: bytes) -> bytes:
        for shown, value, name in self._pairs:
            if shown in data:
                self._used[name] = None
                data = data.replace(shown, value)
        return data


class Exchange:
    """Requests and answers of a connection to the host of a secret."""

    def __init__(self, target: Target, secrets: Sequence[Secret], default_port: int) -> None:
        self.inserter = Inserter(secrets)
        self.requests = http.Requests(target.host, target.port, default_port=default_port, inserter=self.inserter)
        echoes = Echoes((secret.value, secret.placeholder) for secret in secrets)
        self.responses = Responses(self.requests.methods, echoes)

    def answer(self, failure: Failure, text: str) -> bytes:
        """Return a response of the proxy, if one is waited for and none is on its way already."""
        is_awaited = failure is Failure.REFUSED or bool(self.requests.methods) or not self.requests.count
        return http.answer(failure.value[0], text) if self.responses.is_between and is_awaited else b""


class ExchangeFilter:
    """A filter of one exchange, with TLS or without."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.for_guest = bytearray()

    @property
    def used(self) -> tuple[str, ...]:
        """The names of secrets that were inserted."""
        return self._exchange.inserter.used

    @property
    def is_holding(self) -> bool:
        """True if requests of the program wait for answers to others."""
        return self._exchange.requests.is_full


class PlainFilter(ExchangeFilter, HttpGuard):
    """HTTP without TLS to a host of a secret."""

    def __init__(self, exchange: Exchange, first: bytes = b"") -> None:
        ExchangeFilter.__init__(self, exchange)
        HttpGuard.__init__(self, exchange.requests, first)

    def back(self, data: bytes) -> None:
        """Take bytes of the server."""
        self.for_guest += self._exchange.responses.feed(data)

    @property
    def is_untold(self) -> bool:
        """False: a program can always be told."""
        return False

    def end(self) -> bytes:
        """Return nothing: the connection's end says it."""
        return b""

    def finish(self) -> None:
        """Add what is left."""
        self.for_guest += self._exchange.responses.finish()

    def refuse(self, failure: Failure, text: str) -> bytes:
        """Return a response, if none is on its way already."""
        return self._exchange.answer(failure, text)
