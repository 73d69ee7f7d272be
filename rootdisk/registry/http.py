"""The HTTP session of a registry: redirects, origins, certificates, deadlines."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import requests.adapters
import urllib3

from rootdisk import __version__
from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.repository import RegistryOptions
from rootdisk.registry.answers import told
from rootdisk.registry.deadlines import Watch
from rootdisk.registry.proxies import proxy_for
from rootdisk.urls import Url, parse_url

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
COMMIT_BYTES_PER_S = 16 << 20  # before it answers, a registry reads the blob again and may copy it


class Session(requests.Session):
    """A session that follows redirects itself.

    It sends no Authorization to other origins, never goes from https to http, and reads no bodies of redirects.
    """

    def __init__(self, base: Url, options: RegistryOptions) -> None:
        super().__init__()
        self.origin = base.origin
        self._plain_http = options.plain_http
        self._verify_tls = options.verify_tls
        if not options.verify_tls:  # the administrator has said so
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._timeout = (options.connect_timeout_s, options.read_timeout_s)
        self.auth = _keep  # otherwise requests uses ~/.netrc, even for redirect targets
        self.headers["Accept-Encoding"] = "identity"
        self.headers["User-Agent"] = f"rootdisk/{__version__}"
        self.cookies.set_policy(_no_cookies())
        adapter = Adapter(options, self.origin)
        self.watch = adapter.watch
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None, so that requests does not follow redirects: it would read their bodies without a limit."""
        return

    def merge_environment_settings(self, url: Any, *args: Any, **kwargs: Any) -> Any:
        """Choose the proxy by our own rules."""
        proxy = proxy_for(parse_url(str(url)))
        return {**super().merge_environment_settings(url, *args, **kwargs), "proxies": {"all": proxy} if proxy else {}}

    def request(  # type: ignore[override]
        self, method: str, url: str, headers: Mapping[str, str] | None = None, data: Any = None, **_: Any
    ) -> requests.Response:
        """Send a request and follow redirects.

        Raises:
            RegistryError: A redirect is refused, or there are too many.
        """
        sent = dict(headers or {})
        place = parse_url(url)
        for _hop in range(MAX_REDIRECTS):
            if place.origin != self.origin:
                sent.pop("Authorization", None)
            response = self.once(method, place, headers=sent, data=data)
            location = response.headers.get("Location")
            if response.status_code not in REDIRECTS or not location:
                return response
            response.close()
            if method not in ("GET", "HEAD") and response.status_code not in (307, 308):
                raise RegistryError(told(method, str(place), f"redirect {response.status_code} is not allowed here"))
            try:
                place = place.join(location)
            except RegistryError as err:
                raise RegistryError(told(method, str(place), f"redirect to {err.message}")) from None
        raise RegistryError(told(method, str(place), f"more than {MAX_REDIRECTS} redirects"))

    def once(self, method: str, url: Url, *, headers: Mapping[str, str], data: Any = None) -> requests.Response:
        """Send one request with exactly these headers and return the streamed response. Redirects are not followed.

        Raises:
            RegistryError: The URL is not https, or its host is refused.
        """
        if url.scheme != "https" and not self._plain_http:
            raise RegistryError(told(method, str(url), "not https"), "if you trust this network, use --plain-http")
        if url.origin != self.origin:
            self.watch.reach.check_host(url.host, url.port)
        connect_s, read_s = self._timeout
        if method == "PUT" and data is not None:
            # After a resumed upload the registry reads the complete blob again.
            read_s += getattr(data, "whole_bytes", len(data)) / COMMIT_BYTES_PER_S
        return super().request(
            method,
            str(url),
            headers=dict(headers),
            data=data,
            stream=True,
            allow_redirects=False,
            timeout=(connect_s, read_s),
            verify=self._verify_tls,
        )


class Adapter(requests.adapters.HTTPAdapter):
    """Trusts the certificates of the system and those in the CA file; watches all waits."""

    def __init__(self, options: RegistryOptions, home: tuple[str, str, int]) -> None:
        self._home = home
        self._ca_file = options.ca_file
        self._verify_tls = options.verify_tls
        self.watch = Watch()
        self.read_timeout_s = options.read_timeout_s
        super().__init__(pool_maxsize=16)

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        """The TLS context, created at first use: reading the certificates takes as long as fetching a small disk."""
        context = ssl.create_default_context()
        if not self._verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._ca_file is not None:
            try:
                context.load_verify_locations(self._ca_file)
            except OSError as err:  # ssl.SSLError is one
                raise BadInput(
                    f"CA file {self._ca_file}: {err.strerror or err}", "it must contain PEM certificates"
                ) from err
        return context

    def build_connection_pool_key_attributes(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Check that requests has parsed the URL as we have, and add the TLS context."""
        host, pool = super().build_connection_pool_key_attributes(request, *args, **kwargs)
        url = parse_url(str(request.url))
        if (host["scheme"], host["host"].strip("[]"), host["port"] or url.port) != url.origin:
            raise RegistryError(f"{url.shown}: two URL parsers disagree about it")
        if host["scheme"] == "https":
            pool["ssl_context"] = self._context
        return host, pool

    def get_connection_with_tls_context(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Watch the connections of the pool."""
        pool = super().get_connection_with_tls_context(request, *args, **kwargs)
        self.watch.adopt(pool, home=parse_url(str(request.url)).origin == self._home)
        return pool

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Add the TLS context to proxy connections."""
        return super().proxy_manager_for(*args, **kwargs, ssl_context=self._context)


def _keep(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _no_cookies() -> DefaultCookiePolicy:
    return DefaultCookiePolicy(allowed_domains=[])
