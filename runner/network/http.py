"""HTTP requests of a guest, checked and rewritten: what one server reads one way and another differently goes nowhere. Pure.

RFC 9112. Lines end with CR and LF, a body has one length, a request one Host. Trailers and chunk extensions are dropped, and so
is what is said to the proxy itself.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple, Protocol

from rootdisk.network.hosts import Host, Refused, host_text, parse_authority

HEAD_MAX = 64 << 10
FIELDS_MAX = 200
_UNANSWERED_MAX = 32  # requests of a connection whose answers are searched
_LINE_MAX = 256  # of a chunk's size
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_TARGET = re.compile(rb"[!-~]{1,32768}")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~]*)?")
# What is said to the next hop alone, RFC 9110 section 7.6.1; without Upgrade a connection stays HTTP.
_HOP = {b"connection", b"proxy-connection", b"keep-alive", b"upgrade", b"proxy-authorization", b"te", b"http2-settings"}

# What makes an answer unlike what the server has: secrets in it could not be found.
_PARTS = {b"accept-encoding", b"range", b"if-range"}

Field = tuple[bytes, bytes]


class Request(NamedTuple):
    """The head of a request."""

    method: bytes
    target: bytes
    version: bytes
    fields: tuple[Field, ...]

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of all fields of that name, which is in lower case."""
        return [value for key, value in self.fields if key.lower() == name]


class Inserter(Protocol):
    """Puts secrets into the fields of requests."""

    def value(self, value: bytes) -> bytes:
        """Return what a field says to the server."""


def take_head(data: bytearray) -> Request | None:
    """Take the head of a request from the start of `data`; None if it is not complete yet.

    Raises:
        Refused: It is not one, or one that could be read in two ways.
    """
    if data[:2] == b"\r\n":  # RFC 9112 section 2.2
        del data[:2]
    end = data.find(b"\r\n\r\n", 0, HEAD_MAX)
    if end < 0:
        if len(data) >= HEAD_MAX:
            raise Refused("the head of a request is longer than 64 KiB")
        if data and not _TOKEN.match(bytes(data[:1])):
            raise Refused("not an HTTP request")
        if (line := data.find(b"\n", 0, HEAD_MAX)) >= 0:
            _parse_line(bytes(data[: line + 1]).removesuffix(b"\r\n"))
        return None
    lines = bytes(data[:end]).split(b"\r\n")
    del data[: end + 4]
    if len(lines) > FIELDS_MAX:
        raise Refused(f"a request with more than {FIELDS_MAX} fields")
    return Request(*_parse_line(lines[0]), tuple(map(_field, lines[1:])))


def _parse_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    words = line.split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not _TARGET.fullmatch(words[1]):
        raise Refused("not an HTTP request")
    if words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refused("not a request of HTTP/1.1 or 1.0")
    return words[0], words[1], words[2]


def _field(line: bytes) -> Field:
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise Refused("a request with a broken field")
    return name, value.strip(b" \t")


def absolute_target(target: bytes) -> tuple[Host, int, bytes]:
    """Return host, port and path of an absolute target, which a proxy gets.

    Raises:
        Refused: It is something else.
    """
    scheme, separator, rest = target.decode("ascii").partition("://")
    if not separator or scheme.lower() != "http":
        raise Refused("a request that names no http:// host" if not separator else f"a request for {scheme[:20]}://")
    cut = min((place for mark in "/?#" if (place := rest.find(mark)) >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:].partition("#")[0]
    if "\\" in authority:
        raise Refused("a backslash in the host")
    host, port = parse_authority(authority, 80)
    return host, port, (path if path.startswith("/") else f"/{path}").encode()


class Requests:
    """The requests of one connection to one server: bytes from the guest in, checked bytes for the server out."""

    def __init__(self, host: Host, port: int, *, default_port: int = 80, inserter: Inserter | None = None) -> None:
        """Every request has to be for `host` and `port`. With `inserter` the answers can be searched: whole and not compressed."""
        self._host, self._port = host, port
        self._default_port = default_port
        self._inserter = inserter
        self.methods: deque[bytes] = deque()  # of requests without an answer, if there is an inserter
        self._left = 0  # bytes of a body, or of a chunk
        self._in_chunks = self._in_trailers = False
        self._chunk_ends = False  # the line end after a chunk's data is still to come
        self._error: Refused | None = None
        self.count = 0  # requests that have begun
        self.is_last = False  # after this request nothing more is sent

    @property
    def is_full(self) -> bool:
        """Return whether another request has to wait for answers."""
        return len(self.methods) >= _UNANSWERED_MAX

    def begin(self, request: Request, path: bytes | None = None) -> bytes:
        """Return the head of a request for the server. With `path` it came to a proxy: it is the connection's only one.

        Raises:
            Refused: It is for another host, or its length can be read in two ways.
        """
        self._check_host(request, is_absolute=path is not None)
        chunked, length = _body(request)
        self._in_chunks, self._left = chunked, length
        self.count += 1
        self.is_last |= path is not None or request.version == b"HTTP/1.0"
        lines = [b" ".join((request.method, path or self._origin_target(request), request.version))]
        if self._port == self._default_port:
            lines.append(b"Host: " + host_text(self._host).encode())
        else:
            lines.append(b"Host: " + f"{host_text(self._host)}:{self._port}".encode())
        named = {word.strip().lower() for value in request.values(b"connection") for word in value.split(b",")}
        for name, value in request.fields:
            key = name.lower()
            if key == b"host" or key in _HOP or (key in named and key not in (b"content-length", b"transfer-encoding")):
                continue
            if self._inserter is not None:
                if key in _PARTS:
                    continue
                value = self._inserter.value(value)
            lines.append(name + b": " + value)
        if self._inserter is not None:
            lines.append(b"Accept-Encoding: identity")
            self.methods.append(request.method)
        if self.is_last or b"close" in named:
            self.is_last = True
            lines.append(b"Connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _origin_target(self, request: Request) -> bytes:
        if request.target.startswith(b"/") or (request.target == b"*" and request.method == b"OPTIONS"):
            return request.target
        host, port, path = absolute_target(request.target)
        if (host, port) != (self._host, self._port):
            raise Refused(f"a request for {host_text(host)}:{port} on a connection to {host_text(self._host)}")
        return path

    def _check_host(self, request: Request, *, is_absolute: bool) -> None:
        values = request.values(b"host")
        if len(values) > 1:
            raise Refused("a request with two Host fields")
        if not values:
            if request.version == b"HTTP/1.1" and not is_absolute:
                raise Refused("a request without a Host field")
            return
        host, port = parse_authority(values[0].decode("ascii", "replace"), self._default_port)
        if (host, port) != (self._host, self._port):
            raise Refused(f"the Host field says {host_text(host)}:{port}, the connection is to {host_text(self._host)}")

    def feed(self, data: bytearray, limit: int) -> bytes:
        """Take checked bytes for the server from `data`, about `limit` of them at most.

        Raises:
            Refused: A request breaks a rule. What is before it was returned by an earlier call.
        """
        if self._error is not None:
            raise self._error
        out = bytearray()
        try:
            while len(out) < limit and (piece := self._next(data, limit)):
                out += piece
        except Refused as err:
            self._error = err
            if not out:
                raise
        return bytes(out)

    def _next(self, data: bytearray, limit: int) -> bytes:
        """Take a head, a part of a body, or what stands between chunks; b"" if it is not complete."""
        if self._left:
            piece = bytes(data[: min(self._left, limit)])
            del data[: len(piece)]
            self._left -= len(piece)
            self._chunk_ends = self._in_chunks and not self._left
            return piece
        if self._in_chunks:
            return self._chunk(data)
        if self.is_last and self.count:
            data.clear()  # a proxy's connection has one request
            return b""
        if self.is_full:
            return b""
        request = take_head(data)
        return b"" if request is None else self.begin(request)

    def _chunk(self, data: bytearray) -> bytes:
        """Take what stands between the data of chunks, or after the last; b"" if it is not complete."""
        while True:
            start = 2 if self._chunk_ends else 0
            if data[:start] != b"\r\n"[: min(start, len(data))]:
                raise Refused("a chunk that is longer than it says")
            end = data.find(b"\r\n", start, HEAD_MAX)
            if end < 0:
                if len(data) >= (HEAD_MAX if self._in_trailers else _LINE_MAX):
                    raise Refused("a chunk with a line that is too long")
                return b""
            line = bytes(data[start:end])
            del data[: end + 2]
            if not self._in_trailers:
                break
            if not line:
                self._in_chunks = self._in_trailers = False
                return b"\r\n"
            _field(line)
        match = _SIZE.fullmatch(line)
        if match is None:
            raise Refused("a chunk without a size")
        before = b"\r\n" if self._chunk_ends else b""
        self._chunk_ends = False
        self._left = int(match[1], 16)
        self._in_trailers = not self._left
        return before + f"{self._left:x}\r\n".encode()


def _body(request: Request) -> tuple[bool, int]:
    """Return whether a request's body is in chunks, and else its length."""
    lengths, encodings = request.values(b"content-length"), request.values(b"transfer-encoding")
    if encodings:
        if lengths:
            raise Refused("a request with a length and chunks")
        if [value.lower() for value in encodings] != [b"chunked"] or request.version != b"HTTP/1.1":
            raise Refused("a request with an unknown Transfer-Encoding")
        return True, 0
    if len(lengths) > 1 or (lengths and not re.fullmatch(rb"[0-9]{1,18}", lengths[0])):
        raise Refused("a request with a broken length")
    return False, int(lengths[0]) if lengths else 0


def answer(status: str, text: str) -> bytes:
    """Return a response of the proxy itself."""
    body = f"rootdisk: {text}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
