"""The choice of what inserts secrets into a connection, by its target. Only sandboxes with --secret load this."""

from __future__ import annotations

from runner.network import http
from runner.network.exchange import Exchange, PlainFilter
from runner.network.guards import Filter, Target
from runner.network.intercept import Contexts, TlsFilter
from runner.network.secrets import HTTP_PORT, HTTPS_PORT, Place, Secret, Secrets


class SecretInsertion:
    """The secrets of a sandbox, by the place that they are for."""

    def __init__(self, secrets: Secrets, contexts: Contexts | None) -> None:
        """`contexts` are for TLS; None if no host is asked over TLS."""
        self._contexts = contexts
        self._secrets: dict[Place, list[Secret]] = {}
        for secret in secrets.secrets:
            for place in secret.places:
                self._secrets.setdefault(place, []).append(secret)

    def guard(self, target: Target) -> Filter | None:
        """Return what inserts secrets into a connection to `target`; None if none is for it."""
        if self._contexts is not None and (secrets := self._secrets.get(Place(target, True))):
            return TlsFilter(target.host, Exchange(target, secrets, HTTPS_PORT), self._contexts)
        if secrets := self._secrets.get(Place(target, False)):
            return PlainFilter(Exchange(target, secrets, HTTP_PORT))
        return None

    def absolute(self, target: Target, request: http.Request, path: bytes) -> Filter | None:
        """Return the same for a request that came to a proxy, which is not sent yet.

        Raises:
            Refused: The request is for another host, or the host is asked over TLS alone.
        """
        secrets = self._secrets.get(Place(target, False))
        if not secrets:
            return None
        exchange = Exchange(target, secrets, HTTP_PORT)
        return PlainFilter(exchange, exchange.requests.begin(request, path))
