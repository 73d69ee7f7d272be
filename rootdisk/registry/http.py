"""The HTTP session of a registry: redirects, origins, certificates."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk import __version__
from rootdisk.errors import RegistryError
from rootdisk.oci.repository import RegistryOptions
from rootdisk.parsing.urls import Url
from rootdisk.registry.addresses import Reach
from rootdisk.registry.answers import NETWORK_ERRORS, Response, artifact_of, network_error, told
from rootdisk.registry.connections import Connection, Payload, Proxy, Ways
from rootdisk.registry.deadlines import Watch
from rootdisk.registry.pool import Pool, Way
from rootdisk.registry.proxies import proxy_for

if TYPE_CHECKING:  # and loaded where TLS is used
    import ssl

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
COMMIT_BYTES_PER_S = 16 << 20  # before it answers, a registry reads the blob again and may copy it
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # the first that is set counts, as for most programs in Python
_ALWAYS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": f"rootdisk/{__version__}"}


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
        self._making_context = threading.Lock()
        self._pool = Pool(self.watch, options.spare_connections)

    def close(self) -> None:
        """Close all connections that are not in use, and wait for threads that open some."""
        self._pool.close()

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        """The TLS context: it trusts the certificates of the system (or SSL_CERT_FILE), of _BUNDLES and of the CA file."""
        return self._new_context()

    def _context_for(self, url: Url) -> ssl.SSLContext:
        """Return the TLS context for a host: with its own certificates, if there are any."""
        from rootdisk.registry.certificates import certificates_folder, load_certificates

        with self._making_context:  # certificates are read once, though two connections are opened at the same time
            if url.authority not in self._contexts:
                folder = certificates_folder(url.authority)
                context = self._new_context() if folder is not None else self._context
                if folder is not None:
                    load_certificates(context, folder, is_client=url.origin == self.origin)
                self._contexts[url.authority] = context
            return self._contexts[url.authority]

    def _new_context(self) -> ssl.SSLContext:
        import ssl

        from rootdisk.registry.certificates import load_authorities

        context = ssl.create_default_context()
        if not self._options.verify_tls:  # the administrator has said so
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        known = ssl.get_default_verify_paths().cafile  # often the same bundle, and reading one takes long
        named = next((name for name in _BUNDLES if os.environ.get(name)), "")
        for name, place in ((named, os.environ.get(named)), ("CA file", self._options.ca_file)):
            if not place or place == known:
                continue
            if name == named and os.path.isdir(place):  # of single files, as for requests
                context.load_verify_locations(capath=place)
            else:
                load_authorities(context, Path(place), name)
        return context

    def request(
        self, method: str, url: Url, headers: Mapping[str, str], data: bytes | Payload | None = None
    ) -> Response:
        """Send a request and follow redirects.

        Raises:
            RegistryError: No response comes, a redirect is refused, or there are too many.
        """
        sent = dict(headers)
        place = url
        for _hop in range(MAX_REDIRECTS):
            if place.origin != self.origin:
                sent.pop("Authorization", None)
            try:
                response = self.once(method, place, sent, data)
            except RegistryError as err:
                if place is not url:
                    err.message = f"{artifact_of(str(url))}: after a redirect, {err.message}"
                raise
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

    def once(self, method: str, url: Url, headers: Mapping[str, str], data: bytes | Payload | None = None) -> Response:
        """Send one request with exactly these headers and return the open response. Redirects are not followed.

        Raises:
            RegistryError: The URL is not https, its host is refused, or no response comes.
        """
        if url.scheme != "https" and not self._options.plain_http:
            hint = "if you trust this network, use --plain-http" if url.origin[1:] == self.origin[1:] else ""
            raise RegistryError(told(method, str(url), "not https"), hint)
        is_home = url.origin == self.origin
        if not is_home:
            self.reach.check_host(url.host, url.port)
        read_s = self._options.read_timeout_s
        if method == "PUT" and data is not None:
            # After a resumed upload the registry reads the complete blob again.
            read_s += getattr(data, "whole_bytes", len(data)) / COMMIT_BYTES_PER_S
        way = Way(url.origin, proxy_for(url) or "")
        make = functools.partial(
            Connection, url, Proxy.parse(way.proxy) if way.proxy else None, self._ways, home=is_home
        )
        # An upload finds out first what has arrived of it; upload.py.
        may_repeat = method != "POST" and (data is None or isinstance(data, bytes))
        while True:
            connection, is_new = self._pool.take(way, make, has_spares=is_home)
            try:
                answer = connection.exchange(method, {**_ALWAYS, **headers}, data, url, read_s)
                break
            except NETWORK_ERRORS as err:
                connection.close()
                # A server may close a connection at the moment when it is used again: RFC 9112, section 9.3.1.
                if is_new or not may_repeat or not isinstance(err, ConnectionError) or self.watch.stopped.is_set():
                    raise network_error(method, url, err) from None
            except BaseException:
                connection.close()
                raise
        assert connection.wire is not None
        wait = functools.partial(self.watch.within, connection.wire)
        done = functools.partial(self._pool.put_back, way, connection)
        limits = self._options.read_timeout_s, self._options.read_min_bytes
        return Response(method, url, answer, wait, *limits, done)
