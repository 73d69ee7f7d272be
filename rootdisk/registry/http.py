"""The HTTP session of a registry: redirects, origins, certificates, connections that are used again."""

from __future__ import annotations

import functools
import ssl
import threading
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from rootdisk import __version__
from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.repository import RegistryOptions
from rootdisk.registry.addresses import Reach
from rootdisk.registry.answers import Response, told
from rootdisk.registry.certificates import certificates_folder, load_certificates
from rootdisk.registry.connections import Connection, Payload, Proxy, Ways
from rootdisk.registry.deadlines import Watch
from rootdisk.registry.proxies import proxy_for
from rootdisk.urls import Url

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
COMMIT_BYTES_PER_S = 16 << 20  # before it answers, a registry reads the blob again and may copy it
_ALWAYS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": f"rootdisk/{__version__}"}


class _Way(NamedTuple):
    """Connections with the same way may be used for each other's requests."""

    origin: tuple[str, str, int]
    proxy: str


class Session:
    """Sends requests. Threads may share it.

    It sends no Authorization to other origins, never goes from https to http, and reads no bodies of redirects.
    """

    def __init__(self, base: Url, options: RegistryOptions) -> None:
        self.origin = base.origin
        self.reach = Reach()
        self.watch = Watch()
        self._options = options
        self._ways = Ways(self.watch, self.reach, self._context_for, options.connect_timeout_s)
        self._contexts: dict[str, ssl.SSLContext] = {}  # by host, if it has certificates of its own
        self._idle: dict[_Way, list[Connection]] = defaultdict(list)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections that are not in use."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        """The TLS context: it trusts the certificates of the system and those in the CA file."""
        return self._new_context()

    def _context_for(self, url: Url) -> ssl.SSLContext:
        """Return the TLS context for a host: with its own certificates, if there are any."""
        if url.authority not in self._contexts:
            folder = certificates_folder(url.authority)
            context = self._new_context() if folder is not None else self._context
            if folder is not None:
                load_certificates(context, folder, is_client=url.origin == self.origin)
            self._contexts[url.authority] = context
        return self._contexts[url.authority]

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if not self._options.verify_tls:  # the administrator has said so
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._options.ca_file is not None:
            try:
                context.load_verify_locations(self._options.ca_file)
            except OSError as err:  # ssl.SSLError is one
                raise BadInput(
                    f"CA file {self._options.ca_file}: {err.strerror or err}", "it must contain PEM certificates"
                ) from err
        return context

    def request(
        self, method: str, url: Url, headers: Mapping[str, str], data: bytes | Payload | None = None
    ) -> Response:
        """Send a request and follow redirects.

        Raises:
            RegistryError: A redirect is refused, or there are too many.
            OSError, http.client.HTTPException: There is no response; see `network_error`.
        """
        sent = dict(headers)
        place = url
        for _hop in range(MAX_REDIRECTS):
            if place.origin != self.origin:
                sent.pop("Authorization", None)
            response = self.once(method, place, headers=sent, data=data)
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or not location:
                return response
            response.close()
            if method not in ("GET", "HEAD") and response.status not in (307, 308):
                raise RegistryError(told(method, str(place), f"redirect {response.status} is not allowed here"))
            try:
                place = place.join(location)
            except RegistryError as err:
                raise RegistryError(told(method, str(place), f"redirect to {err.message}")) from None
        raise RegistryError(told(method, str(place), f"more than {MAX_REDIRECTS} redirects"))

    def once(
        self, method: str, url: Url, *, headers: Mapping[str, str], data: bytes | Payload | None = None
    ) -> Response:
        """Send one request with exactly these headers and return the open response. Redirects are not followed.

        Raises:
            RegistryError: The URL is not https, or its host is refused.
            OSError, http.client.HTTPException: There is no response; see `network_error`.
        """
        if url.scheme != "https" and not self._options.plain_http:
            raise RegistryError(told(method, str(url), "not https"), "if you trust this network, use --plain-http")
        if url.origin != self.origin:
            self.reach.check_host(url.host, url.port)
        read_s = self._options.read_timeout_s
        if method == "PUT" and data is not None:
            # After a resumed upload the registry reads the complete blob again.
            read_s += getattr(data, "whole_bytes", len(data)) / COMMIT_BYTES_PER_S
        way = _Way(url.origin, proxy_for(url) or "")
        connection = self._take(way, url)
        try:
            answer = connection.exchange(method, {**_ALWAYS, **headers}, data, url, read_s)
        except BaseException:
            connection.close()
            raise
        assert connection.wire is not None
        wait = functools.partial(self.watch.within, connection.wire)
        done = functools.partial(self._put_back, way, connection)
        limits = self._options.read_timeout_s, self._options.read_min_bytes
        return Response(method, url, answer, wait, *limits, done)

    def _put_back(self, way: _Way, connection: Connection, is_usable: bool) -> None:
        """Keep a connection for another request, if it is usable."""
        if not is_usable:
            connection.close()
            return
        with self._lock:
            self._idle[way].append(connection)

    def _take(self, way: _Way, url: Url) -> Connection:
        while True:
            with self._lock:
                connection = self._idle[way].pop() if self._idle[way] else None
            if connection is None:
                proxy = Proxy.parse(way.proxy) if way.proxy else None
                return Connection(url, proxy, self._ways, home=url.origin == self.origin)
            if connection.is_usable:
                return connection
            connection.close()
