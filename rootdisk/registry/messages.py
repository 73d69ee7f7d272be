"""HTTP/1.1 messages on a socket, RFC 9112: write the head of a request, read an answer within bounds.

Only what a client of registries needs. http.client reads header fields with the parser for e-mail, and loads TLS: both take
longer to load than a small push takes. What can be read in two ways is refused: two lengths, a broken field, another encoding than
chunks. An answer that is followed by more than its body ends its connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

HEAD_MAX = 64 << 10  # bytes of a head, of a chunk's size with its extensions, and of all trailers
FIELDS_MAX = 100
INTERIM_MAX = 20
# Servers send chunks of kilobytes. After this many, smaller ones would cost more processor time than the server has.
CHUNKS_FREE, CHUNK_MIN_BYTES = 10_000, 64
_RECV_BYTES = 64 << 10
_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS = re.compile(r"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: (.*))?", re.DOTALL)
_START = b"HTTP/1."
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(r"[0-9]{1,19}")
_CHUNK = rb"(?s)([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\Z"  # compiled at first use
_SWITCHING = 101


class NotHttp(Exception):
    """An answer that is not one of HTTP/1, or one that we refuse: then its text says why."""


class Closed(ConnectionError):
    """A server has closed the connection before its answer was complete."""


class Socket(Protocol):
    """The source of an answer: a socket, or TLS on one."""

    def recv(self, max_bytes: int, /) -> bytes:
        """Return bytes that have arrived, b"" at the end."""


def request_head(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Return the head of a request.

    Raises:
        ValueError: Something would be read as more than it is.
    """
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any("\r" in line or "\n" in line or "\0" in line for line in lines) or " " in target:
        raise ValueError("a request with a line end in a field")
    return "\r\n".join((*lines, "", "")).encode("latin-1")


class Headers:
    """The fields of a head. Those of one name are joined, as RFC 9110 section 5.3 allows."""

    def __init__(self, lines: list[str]) -> None:
        """Parse the lines of a head.

        Raises:
            NotHttp: One is broken.
        """
        self._fields: dict[str, str] = {}
        name = ""
        for line in lines:
            line = line.removesuffix("\r")
            if "\r" in line or "\0" in line:
                raise NotHttp
            if name and line[:1] in (" ", "\t"):  # RFC 9112, section 5.2: it goes on
                self._fields[name] += " " + line.strip(" \t")
                continue
            name, colon, value = line.partition(":")
            if not colon or not _NAME.fullmatch(name):
                raise NotHttp
            name, value = name.lower(), value.strip(" \t")
            self._fields[name] = f"{self._fields[name]}, {value}" if name in self._fields else value

    def get(self, name: str) -> str:
        """Return a field, "" if there is none."""
        return self._fields.get(name.lower(), "")


class Answer:
    """The answer to a request. Interim answers are passed over; RFC 9110, section 15.2.

    `length` is what is left of the body, or of the current chunk; None if the body ends with the connection. `stays` tells whether
    the connection may be used again after the body.
    """

    def __init__(self, sock: Socket, method: str) -> None:
        """Read the head.

        Raises:
            NotHttp: It is not one.
            Closed, OSError: The connection failed.
        """
        self._sock = sock
        self._data = bytearray()  # read from the socket, and not yet used
        self.status, self.reason = 0, ""
        for _ in range(INTERIM_MAX + 1):
            self._read_head()
            if not 100 <= self.status < 200 or self.status == _SWITCHING:
                break
        else:
            raise NotHttp(f"more than {INTERIM_MAX} interim answers")
        self.is_chunked = False
        self._chunks = self._bytes = 0  # that have come
        self.length: int | None = 0
        if method != "HEAD" and self.status not in (_SWITCHING, 204, 304):
            self._read_length()
        self.is_complete = self.length == 0 and not self.is_chunked

    @property
    def is_reusable(self) -> bool:
        """Return whether the connection can be used for another request."""
        return self.is_complete and self.stays and not self._data

    def read(self, max_bytes: int) -> bytes:
        """Return bytes of the body as soon as there are any; b"" at the end.

        Raises:
            NotHttp: It is not sent in chunks as it should be.
            Closed, OSError: The connection failed.
        """
        if self.is_chunked and not self.length and not self.is_complete:
            self._next_chunk()
        if self.is_complete:
            return b""
        limit = max_bytes if self.length is None else min(max_bytes, self.length)
        if self._data:
            piece = bytes(self._data[:limit])
            del self._data[:limit]
        else:
            piece = self._sock.recv(limit)
        if self.length is None:
            self.is_complete = not piece
            return piece
        if not piece:
            raise Closed
        self.length -= len(piece)
        if self.is_chunked:
            if not self.length and self._line():
                raise NotHttp
        else:
            self.is_complete = not self.length
        return piece

    def _next_chunk(self) -> None:
        """Read the size of a chunk; of the last one, which is empty, also the trailers."""
        match = re.match(_CHUNK, self._line())
        if match is None:  # a proxy that fails midway says such things, so another attempt may help
            raise Closed
        self.length = int(match[1], 16)
        self._chunks, self._bytes = self._chunks + 1, self._bytes + self.length
        if not self.length:
            left = HEAD_MAX
            while line := self._line():
                left -= len(line)
                if left < 0:
                    raise NotHttp
            self.is_complete = True
        elif self._chunks > CHUNKS_FREE and self._bytes < self._chunks * CHUNK_MIN_BYTES:
            raise NotHttp(f"its answer comes in chunks of less than {CHUNK_MIN_BYTES} bytes")

    def _line(self) -> bytes:
        """Return the next line, without its end."""
        while (end := self._data.find(b"\n")) < 0:
            if len(self._data) > HEAD_MAX:
                raise NotHttp
            self._more()
        line = bytes(self._data[:end]).removesuffix(b"\r")
        del self._data[: end + 1]
        return line

    def _more(self) -> None:
        if not (piece := self._sock.recv(_RECV_BYTES)):
            raise Closed
        self._data += piece

    def _read_head(self) -> None:
        """Read status and fields; what comes behind them stays in the buffer."""
        while (match := _HEAD_END.search(self._data)) is None:
            if len(self._data) > HEAD_MAX or not _START.startswith(bytes(self._data[: len(_START)])):
                raise NotHttp
            self._more()
        if match.end() > HEAD_MAX:
            raise NotHttp
        first, *lines = bytes(self._data[: match.start()]).decode("latin-1").removesuffix("\r").split("\n")
        del self._data[: match.end()]
        status = _STATUS.fullmatch(first.removesuffix("\r"))
        if status is None or len(lines) > FIELDS_MAX:
            raise NotHttp
        self.status, self.reason = int(status[2]), (status[3] or "").strip()
        self.headers = Headers(lines)
        connection = {word.strip().lower() for word in self.headers.get("Connection").split(",")}
        self.stays = (
            "close" not in connection and (status[1] != "0" or "keep-alive" in connection) and self.status != _SWITCHING
        )

    def _read_length(self) -> None:
        """Find out how the body ends: RFC 9112, section 6.3."""
        lengths = {length.strip() for length in self.headers.get("Content-Length").split(",")} - {""}
        if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            raise NotHttp
        if encoding := self.headers.get("Transfer-Encoding"):
            if encoding.lower() != "chunked":
                raise NotHttp
            self.is_chunked = True
            self.stays &= not lengths
        elif lengths:
            self.length = int(lengths.pop())
        else:
            self.length = None
            self.stays = False
