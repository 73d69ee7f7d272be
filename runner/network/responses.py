"""HTTP answers of a server to which a secret was sent, with placeholders in the secret's place. Pure.

RFC 9112 section 6. What cannot be searched is not passed on: compressed answers, and heads that could be read in two ways.
Trailers and chunk extensions are dropped.
"""

from __future__ import annotations

import re
from collections import deque

from runner.network.echoes import Echoes, Hidden
from runner.network.guards import Unusable
from runner.network.http import FIELDS_MAX, HEAD_MAX

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}:[\t -~\x80-\xff]*")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~]*)?")
_DROPPED = {b"trailer", b"alt-svc", b"upgrade"}
_UNKNOWN = 1 << 63  # bytes of a body that ends with the connection


class Responses:
    """The answers of one connection: bytes of the server in, bytes for the guest out."""

    def __init__(self, methods: deque[bytes], echoes: Echoes) -> None:
        """`methods` are those of the requests that are sent and not answered."""
        self._methods = methods
        self._echoes = echoes
        self._hidden = Hidden(echoes)
        self._data = bytearray()
        self._body = bytearray()  # of the body, not searched yet: chunks may be tiny, and each search takes time
        self._left = 0  # bytes of a body, or of a chunk
        self._in_chunks = self._in_trailers = self._chunk_ends = False

    @property
    def is_between(self) -> bool:
        """Return whether no answer has begun that is incomplete."""
        return not (self._left or self._in_chunks or self._in_trailers)

    def feed(self, data: bytes) -> bytes:
        """Return what the guest gets.

        Raises:
            Unusable: It is not an answer, or one that cannot be searched.
        """
        self._data += data
        out = bytearray()
        while self._data and (piece := self._next()) is not None:
            out += piece
        return bytes(out + self._searched())

    def finish(self) -> bytes:
        """Return what is left when the server sends nothing more."""
        return self._hidden.end() if self._left > _UNKNOWN >> 1 else b""

    def _next(self) -> bytes | None:
        """Take a head, a piece of a body or what stands between chunks; None if it is not complete."""
        if self._left:
            piece = self._data[: self._left]
            del self._data[: len(piece)]
            self._left -= len(piece)
            self._body += piece
            self._chunk_ends = self._in_chunks and not self._left
            return b"" if self._left or self._in_chunks else self._searched() + self._hidden.end()
        if self._in_chunks or self._in_trailers:
            return self._between()
        return self._head()

    def _searched(self) -> bytes:
        """Return what can be passed on of the body that has come."""
        if not self._body:
            return b""
        out = self._hidden.take(bytes(self._body))
        self._body.clear()
        return _chunk(out) if self._in_chunks or self._in_trailers else out

    def _between(self) -> bytes | None:
        start = 2 if self._chunk_ends else 0
        if self._data[:start] != b"\r\n"[: min(start, len(self._data))]:
            raise Unusable("its answer has a chunk that is longer than it says")
        end = self._data.find(b"\r\n", start, HEAD_MAX)
        if end < 0:
            if len(self._data) >= HEAD_MAX:
                raise Unusable("its answer has a chunk with a line that is too long")
            return None
        line = bytes(self._data[start:end])
        del self._data[: end + 2]
        self._chunk_ends = False
        if self._in_trailers:
            if line:
                return b""
            last = self._searched() + _chunk(self._hidden.end()) + b"0\r\n\r\n"
            self._in_trailers = False
            return last
        match = _SIZE.fullmatch(line)
        if match is None:
            raise Unusable("its answer has a chunk without a size")
        self._left = int(match[1], 16)
        self._in_chunks, self._in_trailers = bool(self._left), not self._left
        return b""

    def _head(self) -> bytes | None:
        end = self._data.find(b"\r\n\r\n", 0, HEAD_MAX)
        if end < 0:
            if len(self._data) >= HEAD_MAX:
                raise Unusable("the head of its answer is longer than 64 KiB")
            return None
        lines = bytes(self._data[:end]).split(b"\r\n")
        del self._data[: end + 4]
        match = _STATUS.fullmatch(lines[0])
        if match is None or len(lines) > FIELDS_MAX or not all(map(_FIELD.fullmatch, lines[1:])):
            raise Unusable("it does not answer in HTTP/1.1")
        status = int(match[1])
        if not self._methods or status == 101:
            raise Unusable("it answers what nobody has asked")
        method = self._methods[0]
        fields = [
            (name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines[1:])
        ]
        if status >= 200 and status not in (204, 304) and method != b"HEAD":
            self._begin_body(fields)
        if status >= 200:
            self._methods.popleft()
        kept = [lines[0], *(line for line, (name, _) in zip(lines[1:], fields, strict=True) if name not in _DROPPED)]
        return self._echoes.hide(b"\r\n".join(kept) + b"\r\n\r\n")

    def _begin_body(self, fields: list[tuple[bytes, bytes]]) -> None:
        values: dict[bytes, set[bytes]] = {}
        for name, value in fields:
            values.setdefault(name, set()).add(value.lower())
        if values.get(b"content-encoding", {b"identity"}) != {b"identity"}:
            raise Unusable("its answer is compressed, though that was not asked for")
        if values.get(b"content-type", b"") and any(
            value.startswith(b"multipart/byteranges") for value in values[b"content-type"]
        ):
            raise Unusable("its answer has parts, though that was not asked for")
        lengths, encodings = values.get(b"content-length"), values.get(b"transfer-encoding")
        if encodings is not None:
            if encodings != {b"chunked"} or lengths is not None:
                raise Unusable("its answer has a length that can be read in two ways")
            self._in_chunks = True
        elif lengths is not None:
            (length, *others) = lengths
            if others or not re.fullmatch(rb"[0-9]{1,18}", length):
                raise Unusable("its answer has a broken length")
            self._left = int(length)
        else:
            self._left = _UNKNOWN


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n" if data else b""
