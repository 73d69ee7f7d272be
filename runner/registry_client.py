"""HTTP to one repository of one registry: oras-py's client, with our own session, credentials, deadlines and retries.

What is oras's: Registry.do_request (ask, answer a 401 challenge, ask again) and its session. What is ours, because
oras 0.2.43 lets credentials travel or waits for ever: its retry decorator is bypassed (`__wrapped__`), redirects are
followed here, and the challenge is answered here. The rules, all enforced in one place each:

- Authorization is sent to the registry's own origin only; never after a redirect, never from ~/.netrc.
- Credentials go to the registry, or to the token service its challenge names; https both, unless plain http was asked.
- Every answer is streamed and read with a bound; every wait has an end; only temporary failures are tried again.
- No query string (presigned URLs hold secrets) and no header is ever part of an error.
"""

from __future__ import annotations

import email.utils
import json
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import oras.auth
import oras.provider
import requests
import requests.adapters
import urllib3

from runner import __version__
from runner.credentials import Credentials, find_credentials
from runner.errors import BadInput, RegistryError
from runner.reference import DOCKER_HUB
from runner.repository import RegistryOptions

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
MAX_ATTEMPTS = 6
COMMIT_BYTES_PER_S = 16 << 20  # a registry reads a blob again, and may copy it, before it answers
TOKEN_MAX_BYTES = 1 << 20
ERROR_MAX_BYTES = 16 << 10

T = TypeVar("T")


class TryLater(RegistryError):
    """Temporary, and the server said when to come back."""

    def __init__(self, message: str, hint: str, *, status: int, after_s: float) -> None:
        super().__init__(message, hint, temporary=True, status=status)
        self.after_s = after_s


class Retry:
    """Decides whether and when to try again: back-off, Retry-After, and an end after `give_up_s` without progress."""

    def __init__(self, give_up_s: float) -> None:
        self._give_up_s = give_up_s
        self.progress()

    def progress(self) -> None:
        """Something worth keeping arrived: start counting again."""
        self._attempts = 0
        self._deadline = time.monotonic() + self._give_up_s

    def wait(self, err: RegistryError) -> None:
        """Sleep until the next attempt; raises `err` where there should be none."""
        self._attempts += 1
        pause = min(0.5 * 2 ** (self._attempts - 1), 10) * random.uniform(0.8, 1.2)
        if isinstance(err, TryLater):
            pause = max(pause, err.after_s)
        # A name that does not resolve or a closed port seldom gets better by waiting: one more try.
        limit = 2 if isinstance(err, Unreachable) else MAX_ATTEMPTS
        if not err.temporary or self._attempts >= limit or time.monotonic() + pause > self._deadline:
            raise err
        time.sleep(pause)

    def run(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except RegistryError as err:
                self.wait(err)


class Unreachable(RegistryError):
    """No connection was made at all."""


class RegistryClient:
    """Requests below `/v2/REPOSITORY/`. Safe to use from several threads."""

    def __init__(self, registry: str, repository: str, options: RegistryOptions) -> None:
        self.name = f"{registry}/{repository}"
        self.options = options
        host = "registry-1.docker.io" if registry == DOCKER_HUB else registry
        self.base = f"{'http' if options.plain_http else 'https'}://{host}/v2/{repository}/"
        self._oras = oras.provider.Registry(host, insecure=options.plain_http)
        session = _Session(self.base, options)
        self._oras.session = session
        self.auth = _Auth(registry, repository, session, options)
        self._oras.auth = self.auth

    def close(self) -> None:
        self._oras.session.close()

    def url(self, path: str) -> str:
        """`path` below the repository, or where a Location header leads."""
        return urljoin(self.base, path)

    def request(
        self,
        method: str,
        path: str,
        *,
        expect: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> requests.Response:
        """One attempt: the open, streamed answer, its status one of `expect`; RegistryError otherwise.

        The caller reads with `read_bounded` or from `raw`, and closes.
        """
        url = self.url(path)
        try:
            # do_request changes the headers it is given.
            response: requests.Response = oras.provider.Registry.do_request.__wrapped__(
                self._oras, url, method, data=data, headers=dict(headers or {}), stream=True
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as err:
            raise network_error(method, url, err) from None
        if response.status_code in expect:
            return response
        with response:
            raise _status_error(method, response, self.name)

    def get(self, path: str, max_bytes: int, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        """A small document and its headers, with retries."""

        def once() -> tuple[bytes, Mapping[str, str]]:
            with self.request("GET", path, expect=(200,), headers=headers) as response:
                return read_bounded(response, max_bytes), response.headers

        return Retry(self.options.give_up_s).run(once)


class _Session(requests.Session):
    """Redirects followed here: no Authorization to other origins, no way from https to http, bodies never read."""

    def __init__(self, base: str, options: RegistryOptions) -> None:
        super().__init__()
        self._origin = origin(base)
        self._plain_http = options.plain_http
        self._timeout = (options.connect_timeout_s, options.read_timeout_s)
        self.auth = _keep  # otherwise ~/.netrc is asked, for redirect targets too
        self.headers["Accept-Encoding"] = "identity"
        self.headers["User-Agent"] = f"rootdisk/{__version__}"
        self.cookies.set_policy(_no_cookies())
        adapter = _Adapter(options)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: requests would read the body of a redirect without a bound."""
        return

    def request(  # type: ignore[override]
        self, method: str, url: str, headers: Mapping[str, str] | None = None, data: Any = None, **_: Any
    ) -> requests.Response:
        sent = dict(headers or {})
        for _hop in range(MAX_REDIRECTS):
            if origin(url) != self._origin:
                sent.pop("Authorization", None)
            response = self.once(method, url, headers=sent, data=data)
            location = response.headers.get("Location")
            if response.status_code not in REDIRECTS or not location:
                return response
            response.close()
            if method not in ("GET", "HEAD") and response.status_code not in (307, 308):
                raise RegistryError(f"{method} {redact(url)}: answered with a redirect {response.status_code}")
            url = urljoin(url, location)
        raise RegistryError(f"{method} {redact(url)}: more than {MAX_REDIRECTS} redirects")

    def once(self, method: str, url: str, *, headers: Mapping[str, str], data: Any = None) -> requests.Response:
        """One exchange with exactly these headers, redirects not followed, answer streamed."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and self._plain_http):
            raise RegistryError(
                f"{method} {redact(url)}: not https", "ask for plain http if this network is to be trusted"
            )
        connect_s, read_s = self._timeout
        if method == "PUT" and data is not None:
            read_s += len(data) / COMMIT_BYTES_PER_S
        return super().request(
            method,
            url,
            headers=dict(headers),
            data=data,
            stream=True,
            allow_redirects=False,
            timeout=(connect_s, read_s),
        )


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts the system's certificates, and the user's own file beside them."""

    def __init__(self, options: RegistryOptions) -> None:
        self._context = ssl.create_default_context()
        if options.ca_file is not None:
            try:
                self._context.load_verify_locations(options.ca_file)
            except OSError as err:  # ssl.SSLError is one
                raise BadInput(
                    f"CA file {options.ca_file}: {err.strerror or err}", "it must hold PEM certificates"
                ) from err
        super().__init__(pool_maxsize=16)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return super().proxy_manager_for(*args, **kwargs, ssl_context=self._context)


class _Auth(oras.auth.TokenAuth):  # type: ignore[misc]
    """Answers a registry's challenge (RFC 7235; distribution's token and oauth2 specifications).

    One Authorization value at a time: the last challenge names the widest scope asked for, and a registry that wants
    another one says so. Replaces oras's own, which never renews a token and knows no basic challenge.
    """

    def __init__(self, registry: str, repository: str, session: _Session, options: RegistryOptions) -> None:
        super().__init__()
        self._registry, self._repository = registry, repository
        self._session, self._plain_http = session, options.plain_http
        self._lock = threading.Lock()
        self._value = ""
        self._expires = 0.0

    @property
    def token(self) -> str | None:
        """What do_request sends unasked: the last answer, until it is about to expire."""
        return self._value if self._value and time.monotonic() < self._expires else None

    @token.setter
    def token(self, value: str | None) -> None:
        self._value = value or ""

    def get_auth_header(self) -> dict[str, str]:
        return {"Authorization": self._value} if self._value else {}

    def authenticate_request(
        self, original: requests.Response, headers: dict[str, str], refresh: bool = False
    ) -> tuple[dict[str, str], bool]:
        """Called by do_request after 401 or 403: the headers to try again with."""
        method = str(original.request.method)
        url, status = original.url, original.status_code
        if origin(url) != self._session._origin:
            original.close()
            # A presigned URL that ran out; asking the registry again gives a new one.
            raise RegistryError(f"{method} {redact(url)}: {status}, after a redirect", temporary=True, status=status)
        if status == 403:
            with original:
                raise _status_error(method, original, f"{self._registry}/{self._repository}")
        original.close()
        with self._lock:
            # Another thread may have been quicker.
            if not self.token or headers.get("Authorization") == self._value:
                self._value, lifetime = self._answer(original.headers.get("WWW-Authenticate", ""))
                self._expires = time.monotonic() + lifetime * 0.75
            return {**headers, "Authorization": self._value}, True

    def _answer(self, header: str) -> tuple[str, float]:
        """An Authorization value and how long it is good for, seconds."""
        challenges = parse_challenges(header)
        credentials = find_credentials(self._registry, self._repository)
        if "bearer" in challenges:
            return self._bearer(challenges["bearer"], credentials)
        if "basic" in challenges:
            if credentials is None or credentials.identity_token:
                raise RegistryError(f"{self._registry} wants a password", self._hint, status=401)
            return credentials.basic, float("inf")
        raise RegistryError(f"{self._registry}: unknown kind of authentication", status=401)

    @property
    def _hint(self) -> str:
        return "log in: docker login, podman login or skopeo login " + self._registry

    def _bearer(self, challenge: Mapping[str, str], credentials: Credentials | None) -> tuple[str, float]:
        realm = challenge.get("realm", "")
        parts = urlsplit(realm)
        if (
            parts.scheme not in (("https", "http") if self._plain_http else ("https",))
            or not parts.hostname
            or "@" in parts.netloc
        ):
            raise RegistryError(f"{self._registry} names a token service we do not talk to: {redact(realm)!r:.200}")
        fields = {key: challenge[key] for key in ("service", "scope") if key in challenge}
        if credentials is not None and credentials.identity_token:
            fields |= {
                "grant_type": "refresh_token",
                "client_id": "rootdisk",
                "refresh_token": credentials.identity_token,
            }
            response = self._session.once("POST", realm, headers={}, data=fields)
        else:
            headers = {"Authorization": credentials.basic} if credentials is not None else {}
            url = requests.Request("GET", realm, params=fields).prepare().url or realm
            response = self._session.once("GET", url, headers=headers)
        with response:
            if response.status_code != 200:
                raise _status_error("GET", response, f"token service of {self._registry}", self._hint)
            raw = read_bounded(response, TOKEN_MAX_BYTES)
        try:
            answer = json.loads(raw)
            token = str(answer.get("token") or answer.get("access_token") or "")
            lifetime = float(answer.get("expires_in") or 60)  # the specification's default
        except (ValueError, AttributeError, TypeError, RecursionError):
            token = ""
        if not re.fullmatch(r"[!-~]+", token):
            raise RegistryError(f"token service of {self._registry}: no token in its answer", self._hint)
        return f"Bearer {token}", min(max(lifetime, 10), 86400)


def _keep(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _no_cookies() -> Any:
    from http.cookiejar import DefaultCookiePolicy

    return DefaultCookiePolicy(allowed_domains=[])


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are bound to."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname or "", port or (443 if parts.scheme == "https" else 80)


def redact(url: str) -> str:
    """Host and path: no user, password, query or fragment."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """WWW-Authenticate: parameters by scheme, both in lower case; RFC 7235 section 4.1. The first of a scheme counts."""
    challenges: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    token = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
    for found in re.finditer(rf'({token})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({token}))|({token})', header[:8192]):
        name, quoted, plain, scheme = found.groups()
        if scheme:
            current = {}
            challenges.setdefault(scheme.lower(), current)
        else:
            current.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain)
    return challenges


def read_bounded(response: requests.Response, max_bytes: int) -> bytes:
    """The whole body, which may have at most `max_bytes`."""
    url = str(response.url)
    body = bytearray()
    pace = Pace(response)
    while piece := pace.read(64 << 10):
        body += piece
        if len(body) > max_bytes:
            raise RegistryError(f"GET {redact(url)}: more than the {max_bytes} bytes allowed")
    return bytes(body)


class Pace:
    """Reads an answer's body; a server that stalls, or trickles, is a temporary RegistryError."""

    MIN_BYTES = 4 << 10  # in `window_s` of waiting

    def __init__(self, response: requests.Response, window_s: float = 60) -> None:
        self._response = response
        self._window_s = window_s
        self._waited = 0.0
        self._count = 0

    def read(self, max_bytes: int) -> bytes:
        """What has arrived, at most `max_bytes`, b"" at the end. Time spent by the caller does not count."""
        start = time.monotonic()
        url = str(self._response.url)
        try:
            piece: bytes = self._response.raw.read1(max_bytes, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as err:
            raise network_error("GET", url, err) from None
        self._waited += time.monotonic() - start
        self._count += len(piece)
        if self._waited >= self._window_s:
            if self._count < self.MIN_BYTES:
                raise RegistryError(f"GET {redact(url)}: {self._count} bytes in {self._waited:.0f} s", temporary=True)
            self._waited, self._count = 0.0, 0
        return piece


def network_error(method: str, url: str, err: Exception) -> RegistryError:
    """What went wrong below HTTP, without the query string that urllib3's own texts hold."""
    text, what = str(err), f"{method} {redact(url)}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        found = re.search(r"certificate verify failed: ([^(]{1,120})", text)
        return RegistryError(
            f"{what}: its certificate is not trusted ({found[1].strip() if found else 'TLS'})",
            "give the certificate authority's file, if it is your own",
        )
    if isinstance(err, requests.exceptions.SSLError):
        if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
            return RegistryError(f"{what}: does not speak TLS", "ask for plain http if this network is to be trusted")
        return RegistryError(f"{what}: TLS failed", temporary="EOF" in text or "reset" in text.lower())
    if isinstance(err, requests.exceptions.ProxyError):
        return Unreachable(f"{what}: the proxy does not answer", "check HTTPS_PROXY", temporary=True)
    if isinstance(err, requests.exceptions.ConnectTimeout):
        return Unreachable(f"{what}: no connection in time", "is the registry's name right?", temporary=True)
    if isinstance(err, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return RegistryError(f"{what}: not a URL we can ask")
    for mark, reason in (
        ("NameResolutionError", "its name is not known"),
        ("Connection refused", "connection refused"),
        ("No route to host", "no route to it"),
        ("Network is unreachable", "the network is unreachable"),
    ):
        if mark in text or mark in repr(err):
            return Unreachable(f"{what}: {reason}", "is the registry's name right, and is it up?", temporary=True)
    reason = "no answer in time" if "timed out" in text.lower() else "the connection broke"
    return RegistryError(f"{what}: {reason}", temporary=True)


def _status_error(method: str, response: requests.Response, what: str, hint: str = "") -> RegistryError:
    """The registry's own words (distribution-spec, error codes), bounded and printable."""
    status = response.status_code
    said = ""
    try:
        errors = json.loads(read_bounded(response, ERROR_MAX_BYTES)).get("errors")
        said = ", ".join(f"{item.get('code')}: {item.get('message')}" for item in errors[:3])
        said = "".join(c if c.isprintable() else " " for c in said)[:300]
    except (RegistryError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        pass  # no words is fine: the status says it
    message = f"{what}: {method} {urlsplit(str(response.url)).path}: {status} {said or response.reason or ''}".rstrip()
    if not hint and status in (401, 403):
        hint = "log in to the registry, and check that the account may do this"
    if not hint and status == 404:
        hint = "check the name; some registries answer so when a login is needed"
    after_s = _retry_after(response.headers.get("Retry-After", ""))
    if status in TEMPORARY and after_s:
        return TryLater(message, hint or f"try again in {after_s:.0f} s", status=status, after_s=after_s)
    return RegistryError(message, hint, temporary=status in TEMPORARY, status=status)


def _retry_after(text: str) -> float:
    """Seconds; RFC 9110 section 10.2.3, a number or a date. 0 where there is none."""
    if text.isascii() and text.isdigit():
        return float(text[:6])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()) if text else 0.0
    except (ValueError, TypeError, OverflowError):
        return 0.0
