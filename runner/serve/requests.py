"""Requests of HTTP/1.1 as a registry's clients send them, parsed from bounded text. Pure."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

HEAD_MAX_BYTES = 16 << 10
HEADERS_MAX = 64
_LINE = re.compile(r"(GET|HEAD|[A-Z]{3,10}) (/[!-~]{0,4000}) HTTP/1\.([01])")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{0,19})")
_CONTENT = re.compile(
    r"/v2/(?P<name>[a-z0-9][a-z0-9._/:-]{0,511})/(?P<kind>manifests|blobs)/(?P<digest>sha(?:256:[0-9a-f]{64}|512:[0-9a-f]{128}))"
)


class Request(NamedTuple):
    """A request without a body."""

    method: str
    path: str
    registry: str  # of `?ns=`: for whom the client asks
    headers: dict[str, str]  # names in lower case
    keeps_alive: bool


class Wanted(NamedTuple):
    """A manifest or blob of a repository."""

    name: str
    kind: str  # manifests or blobs
    digest: str


def parse(head: bytes) -> Request | None:
    """Parse what stands before the empty line; None if it is not a request."""
    line, *lines = head.decode("latin-1").split("\r\n")
    match = _LINE.fullmatch(line)
    if match is None or len(lines) > HEADERS_MAX:
        return None
    headers: dict[str, str] = {}
    for text in lines:
        header = _HEADER.fullmatch(text)
        if header is None or header[1].lower() in headers:
            return None
        headers[header[1].lower()] = header[2]
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return None  # nobody sends us a body
    path, _, query = match[2].partition("?")
    registry = parse_qs(query, max_num_fields=8).get("ns", [""])[0] if query.count("&") < 8 else ""
    keeps_alive = match[3] == "1" and headers.get("connection", "").lower() != "close"
    return Request(match[1], unquote(path), registry, headers, keeps_alive)


def wanted(path: str) -> Wanted | None:
    """Return what a path asks for; None if it is not a manifest or blob by its digest."""
    match = _CONTENT.fullmatch(path)
    return Wanted(match["name"], match["kind"], match["digest"]) if match else None


def range_of(request: Request) -> str:
    """Return the Range header if it names one range of bytes, else "". Any other counts as none, and of HEAD each (RFC 9110, 14.2)."""
    text = request.headers.get("range", "") if request.method == "GET" else ""
    return text if _RANGE.fullmatch(text) else ""


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """Return start and end of a Range header for `size` bytes, all if there is none. None: there is nothing to send."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return 0, size
    start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    return (start, end) if start < end else None


def is_allowed(headers: dict[str, str], token: bytes | None) -> bool:
    """Return whether a request has the token: as bearer token, or as the password of any user."""
    if token is None:
        return True
    kind, _, value = headers.get("authorization", "").partition(" ")
    given = value.strip().encode("latin-1")
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(given, token)
