"""A registry's answer: its body read with bounds, and what went wrong as errors that hold no secret.

No query string (presigned URLs hold secrets) and no header is ever part of an error.
"""

from __future__ import annotations

import email.utils
import re
import time

import requests
import urllib3

from rootdisk.errors import RegistryError, RootdiskError
from rootdisk.oci.documents import parse_json
from rootdisk.registry.deadlines import Watch
from rootdisk.text import printable
from rootdisk.urls import redact

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
ERROR_MAX_BYTES = 16 << 10


class TryLater(RegistryError):
    """Temporary, and the server said when to come back."""

    def __init__(self, message: str, hint: str, *, status: int, after_s: float) -> None:
        super().__init__(message, hint, temporary=True, status=status)
        self.after_s = after_s


class Unreachable(RegistryError):
    """No connection was made at all."""


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

    MIN_BYTES = 4 << 10  # in the session's read time-out of waiting

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._watch: Watch = response.connection.watch  # type: ignore[attr-defined]
        self._window_s: float = response.connection.read_timeout_s  # type: ignore[attr-defined]
        self._waited = 0.0
        self._count = 0

    def read(self, max_bytes: int) -> bytes:
        """What has arrived, at most `max_bytes`, b"" at the end. Time spent by the caller does not count."""
        start = time.monotonic()
        url = str(self._response.url)
        try:
            piece = self._watch.read1(self._response.raw, max_bytes, self._window_s - self._waited)
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


def status_error(method: str, response: requests.Response, what: str, hint: str = "") -> RegistryError:
    """The registry's own words (distribution-spec, error codes), bounded and printable."""
    status = response.status_code
    said = ""
    try:
        answer = parse_json(read_bounded(response, ERROR_MAX_BYTES), what, ERROR_MAX_BYTES)
        said = ", ".join(f"{item.get('code')}: {item.get('message')}" for item in answer["errors"][:3])
        said = printable(said)
    except (RootdiskError, AttributeError, TypeError, KeyError):
        pass  # no words is fine: the status says it
    message = f"{what}: {method} /{redact(str(response.url)).partition('/')[2]}: {status} {said or printable(response.reason or '')}".rstrip()
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
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
