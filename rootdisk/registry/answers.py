"""Read responses of registries within bounds, and turn failures into errors without secrets.

Errors never contain a query string (presigned URLs contain secrets) or a header.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rootdisk.errors import RegistryError, RootdiskError
from rootdisk.oci.documents import parse_json
from rootdisk.parsing.urls import Url, redact
from rootdisk.registry.connections import ProxyFailed
from rootdisk.registry.dial import ConnectTimeout
from rootdisk.registry.messages import Answer, NotHttp
from rootdisk.text import printable

if TYPE_CHECKING:  # and loaded where TLS is used, or something has failed
    import ssl

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
ERROR_MAX_BYTES = 16 << 10
_NOT_HTTP = "its answer is not HTTP"
NETWORK_ERRORS = (OSError, NotHttp)  # what connections raise; for `network_error`
_UNREACHABLE = {
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "the network is unreachable",
}
_OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH and …_IP_ADDRESS_MISMATCH, openssl/x509_vfy.h
_OTHER_TIME = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and …_HAS_EXPIRED


# A request below /v2/ names a repository, and perhaps one artifact of it; distribution-spec, "Endpoints".
_NAMED = r"/v2/(.+?)/(?:manifests/(.+)|blobs/.*|tags/list|referrers/.*)"  # compiled at first use


def artifact_of(url: str) -> str:
    """Return what a request is about, as users write it: HOST/NAME:TAG, HOST/NAME, or the host alone."""
    host, slash, path = redact(url).partition("/")
    host = "docker.io" if host == "registry-1.docker.io" else host
    match = re.fullmatch(_NAMED, slash + path)
    if match is None:
        return host
    reference = f"{'@' if ':' in match[2] else ':'}{match[2]}" if match[2] else ""
    return f"{host}/{match[1]}{reference}"


def told(method: str, url: str, reason: str) -> str:
    """Return an error's message: what it is about and why, then the request for those who look closer."""
    return f"{artifact_of(url)}: {reason} ({method} {redact(url)})"


class TryLater(RegistryError):
    """A temporary error for which the server named a time to wait, `after_s` seconds."""

    def __init__(self, message: str, hint: str, *, status: int, after_s: float) -> None:
        super().__init__(message, hint, temporary=True, status=status)
        self.after_s = after_s


class Unreachable(RegistryError):
    """A failure to connect."""


class Stalled(RegistryError):
    """A server that has connected, and then sends nothing or too little."""


class Response:
    """An open response. It must be closed; its connection is used again if the body has been read."""

    def __init__(
        self,
        method: str,
        url: Url,
        answer: Answer,
        within: Callable[[float], contextlib.AbstractContextManager[None]],
        window_s: float,
        min_bytes: int,
        done: Callable[[bool], None],
    ) -> None:
        """`within` limits a wait, `window_s` is the read timeout, `min_bytes` what has to come in it, `done` is told whether the connection is usable."""
        self.method, self.url = method, url
        self.status, self.reason = answer.status, answer.reason
        self.headers = answer.headers
        self.window_s, self.min_bytes = window_s, min_bytes
        self._answer, self._within, self._done = answer, within, done
        self._is_open = True

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def promised(self) -> int:
        """Return how many bytes of the body, or of its current chunk, are said to come; 0 if nothing is said."""
        return self._answer.length or 0

    def close(self) -> None:
        """Release the connection."""
        if self._is_open:
            self._is_open = False
            self._done(self._answer.is_reusable)

    def read(self, max_bytes: int, seconds: float) -> bytes:
        """Return bytes of the body as soon as there are any; b"" at the end.

        Raises:
            OSError, NotHttp: Nothing came within `seconds`, or the connection failed.
        """
        with self._within(seconds):
            return self._answer.read(max_bytes)


def read_bounded(response: Response, max_bytes: int) -> bytes:
    """Read the complete body.

    Raises:
        RegistryError: It has more than `max_bytes`, or is compressed, or the connection failed.
    """
    check_encoding(response)
    body = bytearray()
    pace = Pace(response)
    while max(len(body), response.promised) <= max_bytes:
        if not (piece := pace.read(64 << 10)):
            return bytes(body)
        body += piece
    raise RegistryError(told("GET", str(response.url), f"more than the {max_bytes} bytes allowed"))


def check_encoding(response: Response) -> None:
    """Refuse a compressed body, for which nobody has asked.

    Raises:
        RegistryError: It is compressed.
    """
    encoding = response.headers.get("Content-Encoding")
    if encoding.lower() not in ("", "identity"):
        raise RegistryError(
            f"{artifact_of(str(response.url))}: the answer is compressed, {printable(encoding, 40)}, "
            "which nobody has asked for",
            "check the proxies before the registry",
        )


class Pace:
    """Reads the body of a response. A server that stalls or is too slow is a temporary RegistryError."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._waited = 0.0
        self._count = 0

    def read(self, max_bytes: int) -> bytes:
        """Return up to `max_bytes` that have arrived, or b"" at the end. Time between calls does not count.

        Raises:
            RegistryError: The connection failed or is too slow.
        """
        start = time.monotonic()
        url, window_s = self._response.url, self._response.window_s
        try:
            piece = self._response.read(max_bytes, window_s - self._waited)
        except (*NETWORK_ERRORS, ValueError) as err:  # ValueError: it was closed by another thread
            raise network_error("GET", url, err) from None
        self._waited += time.monotonic() - start
        self._count += len(piece)
        if self._waited >= window_s:
            if self._count < self._response.min_bytes:
                raise Stalled(
                    told("GET", str(url), f"only {self._count} bytes in {self._waited:.0f} s"), temporary=True
                )
            self._waited, self._count = 0.0, 0
        return piece


def network_error(method: str, url: Url, err: Exception) -> RegistryError:
    """Return the error for a failure below HTTP."""

    def because(reason: str) -> str:
        """Return the message with this reason."""
        return told(method, str(url), reason)

    import ssl

    if isinstance(err, ProxyFailed):
        reason = f"answers {err.status}" if err.status else f"fails: {_reason(err.__cause__)}"
        what = "user and password in " if err.status == 407 else ""
        return Unreachable(
            because(f"the proxy {err.place} {reason}"),
            f"check {what}{url.scheme.upper()}_PROXY or ALL_PROXY",
            temporary=err.status not in (403, 407) and not isinstance(err.__cause__, ssl.SSLError),
        )
    if isinstance(err, ssl.SSLError):
        return _tls_error(because, err)
    reason = _reason(err)
    if isinstance(err, ConnectTimeout | socket.gaierror) or (isinstance(err, OSError) and err.errno in _UNREACHABLE):
        return Unreachable(because(reason), "check the name of the registry and your network", temporary=True)
    if isinstance(err, TimeoutError):
        return Stalled(because(reason), temporary=True)
    return RegistryError(because(reason), temporary=not isinstance(err, NotHttp))


def _reason(err: BaseException | None) -> str:
    """Return why no answer came, in our own words: texts of libraries may contain secrets."""
    import ssl

    if isinstance(err, ConnectTimeout):
        return "connection timed out"
    if isinstance(err, socket.gaierror):
        return "cannot resolve the host name"
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {printable(err.verify_message.removesuffix('.'))}"
    if isinstance(err, ssl.SSLError):
        return f"TLS failed: {(err.reason or 'the connection was closed').lower().replace('_', ' ')}"
    if isinstance(err, TimeoutError):
        return "no answer in time"
    if isinstance(err, NotHttp):
        return str(err) or _NOT_HTTP
    if isinstance(err, OSError) and err.errno and not isinstance(err, BrokenPipeError | ConnectionResetError):
        return _UNREACHABLE.get(err.errno) or os.strerror(err.errno)
    return "the connection was closed"


def _tls_error(because: Callable[[str], str], err: ssl.SSLError) -> RegistryError:
    import ssl

    reason = err.reason or ""
    if isinstance(err, ssl.SSLCertVerificationError):
        hint = "if it is your own registry, name its CA certificate: --ca-file"
        if err.verify_code in _OTHER_NAME:
            hint = "use a name that the certificate has"
        elif err.verify_code in _OTHER_TIME:
            hint = "check the clock of this machine; if it is right, the registry needs another certificate"
        return RegistryError(because(_reason(err)), hint)
    if "CERTIFICATE_REQUIRED" in reason:
        hint = "put it beside the registry's CA: man containers-certs.d"
        return RegistryError(because("it wants a client certificate"), hint)
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return RegistryError(because("the server does not use TLS"), "if you trust this network, use --plain-http")
    if reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"):
        return RegistryError(because("its version of TLS is too old"), "the registry needs TLS 1.2 or later")
    return RegistryError(because(_reason(err)), temporary=isinstance(err, ssl.SSLEOFError) or "RESET" in reason)


def status_error(method: str, response: Response, what: str, hint: str = "") -> RegistryError:
    """Return the error for an unexpected status, with the text of the registry (distribution-spec, error codes)."""
    status = response.status
    text = ""
    try:
        answer = parse_json(read_bounded(response, ERROR_MAX_BYTES), what, ERROR_MAX_BYTES)
        text = ", ".join(f"{item.get('code')}: {item.get('message')}" for item in answer["errors"][:3])
        text = printable(text)
    except (RootdiskError, AttributeError, TypeError, KeyError):
        pass  # without a text the status says enough
    said = f"{status} {text or printable(response.reason or '')}".rstrip()
    message = f"{what}: {said} ({method} {redact(str(response.url))})"
    if not hint and status in (401, 403):
        hint = "log in to the registry, and check the rights of the account"
    if not hint and status == 407:
        hint = "check user and password in HTTP_PROXY or ALL_PROXY"
    if not hint and status == 404:
        hint = "check the name; some registries also answer 404 if a login is needed"
    after_s = _retry_after(response.headers.get("Retry-After"))
    if status in TEMPORARY and after_s:
        return TryLater(message, hint or f"try again in {after_s:.0f} s", status=status, after_s=after_s)
    return RegistryError(message, hint, temporary=status in TEMPORARY, status=status)


def _retry_after(text: str) -> float:
    """Parse a Retry-After header, a number or a date, to seconds; 0 if there is none. RFC 9110 section 10.2.3."""
    if text.isascii() and text.isdigit():
        return float(text[:6])
    import email.utils  # no registry sends a date

    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()) if text else 0.0
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
