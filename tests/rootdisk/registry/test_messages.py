"""Answers as servers send them, cut and spread in any way, and what is not one. http.client reads the same where it can."""

from __future__ import annotations

import http.client
import io
import random
from collections.abc import Sequence
from typing import Any, cast

import pytest

from rootdisk.registry.messages import (
    CHUNK_MIN_BYTES,
    CHUNKS_FREE,
    FIELDS_MAX,
    HEAD_MAX,
    Answer,
    Closed,
    NotHttp,
    request_head,
)


class Pieces:
    """A socket on which these bytes arrive, so many at a time, and then the end."""

    def __init__(self, data: bytes, sizes: Sequence[int] = (1 << 20,)) -> None:
        self.left, self._sizes, self._count = data, sizes, 0

    def recv(self, max_bytes: int, /) -> bytes:
        size = min(max_bytes, self._sizes[self._count % len(self._sizes)])
        self._count += 1
        piece, self.left = self.left[:size], self.left[size:]
        return piece


def read(
    data: bytes, method: str = "GET", sizes: Sequence[int] = (1 << 20,), most: int = 1 << 20
) -> tuple[Answer, bytes]:
    answer = Answer(Pieces(data, sizes), method)
    body = b""
    while piece := answer.read(most):
        body += piece
    assert answer.read(most) == b""
    return answer, body


GOOD: dict[str, tuple[bytes, int, bytes, bool]] = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "nothing": (b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, b"", True),
    "no content": (b"HTTP/1.1 204 \r\n\r\n", 204, b"", True),
    "not modified": (b"HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n", 304, b"", True),
    "to the end": (b"HTTP/1.1 200\r\n\r\nhello", 200, b"hello", False),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nhel\r\n0002;x=y\r\nlo\r\n0\r\n\r\n", 200, b"hello", True),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", 200, b"hello", True),
    "closes": (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", False),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", False),
    "1.0 stays": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", 200, b"hello", True),
    "interim": (b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nLink: <a>\r\n\r\nHTTP/1.1 404 X\r\nContent-Length: 1\r\n\r\n!", 404, b"!", True),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_answers_are_read_as_http_client_reads_them(name: str) -> None:
    """Whatever the pieces in which they arrive, and however much is read at a time."""
    data, status, body, is_reusable = GOOD[name]
    source = random.Random(name)
    for _ in range(40):
        sizes = [source.randint(1, 30) for _ in range(9)]
        answer, got = read(data, sizes=sizes, most=source.randint(1, 9))
        assert (answer.status, got, answer.is_reusable) == (status, body, is_reusable)

    class Sock:
        def makefile(self, _: str) -> io.BytesIO:
            return io.BytesIO(data)

    known = http.client.HTTPResponse(cast("Any", Sock()), method="GET")
    known.begin()
    while known.status == 103:  # http.client takes it for the answer
        known.headers = known.msg = None  # type: ignore[assignment]
        known.begin()
    assert (known.status, known.read(), not known.will_close) == (status, body, is_reusable)


@pytest.mark.parametrize("name", GOOD)
def test_an_answer_that_is_cut(name: str) -> None:
    data, status, body, _ = GOOD[name]
    if name == "to the end":  # no cut of its body can be told
        data = data[: -len(body)]
    for length in range(len(data)):
        with pytest.raises(Closed):
            read(data[:length])
    assert read(data)[0].status == status


BAD = {
    "other protocol": b"SSH-2.0-OpenSSH_9\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "status": b"HTTP/1.1 20 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "digits": "HTTP/1.1 200 OK\r\nContent-Length: ²\r\n\r\nhello".encode("latin-1"),
    "negative": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "encoding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nContent-Length\r\n\r\n",
    "space": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "carriage return": b"HTTP/1.1 200 OK\r\nA: b\rContent-Length: 5\r\n\r\nhello",
    "zero byte": b"HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
    "first goes on": b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
    "fields": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (FIELDS_MAX + 1) + b"\r\n",
    "long head": b"HTTP/1.1 200 OK\r\nA: " + b"b" * HEAD_MAX + b"\r\n\r\n",
    "behind a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
    "long trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * HEAD_MAX + b"\r\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_answer(name: str) -> None:
    with pytest.raises(NotHttp):
        read(BAD[name])


def test_more_than_an_answer_ends_the_connection() -> None:
    """Else the next request would get it: an answer that its sender chose."""
    for body in (b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"):
        answer, got = read(b"HTTP/1.1 200 OK\r\n" + body + b"HTTP/1.1 200 OK\r\n\r\n")
        assert (got, answer.is_reusable) == (b"hello", False)
    answer, _ = read(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    assert not answer.is_reusable  # one of the two lengths is a lie
    assert not read(b"HTTP/1.1 204 X\r\n\r\nhello")[0].is_reusable
    assert not Answer(Pieces(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"), "GET").is_reusable


def test_fields_are_joined() -> None:
    answer, _ = read(b"HTTP/1.1 204 X\r\nA: b\r\na:c \r\n\td\r\nE: \xe9\r\n\r\n")
    assert [answer.headers.get(name) for name in ("A", "e", "none")] == ["b, c d", "é", ""]
    assert read(b"HTTP/1.1 200 X\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab")[1] == b"ab"


def test_no_body_for_head() -> None:
    for field in (b"Content-Length: 5", b"Transfer-Encoding: chunked", b"A: b"):
        answer = Answer(Pieces(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n"), "HEAD")
        assert (answer.read(10), answer.is_complete) == (b"", True)


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "\r\nX: y"])
def test_a_request_says_no_more_than_it_should(bad: str) -> None:
    assert request_head("GET", "/v2/", {"Host": "a", "X": "y"}) == b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"
    for target, fields in ((f"/{bad}", {}), ("/", {f"A{bad}": "b"}), ("/", {"A": f"b{bad}"}), ("/ x", {})):
        with pytest.raises(ValueError, match="line end"):
            request_head("GET", target, fields)


def test_chunks_that_cost_more_than_they_bring() -> None:
    """4 MB in chunks of a byte took a minute of processor time."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(NotHttp, match="chunks of less than"):
        read(head + b"1\r\nx\r\n" * (CHUNKS_FREE + 1) + b"0\r\n\r\n")
    body = b"x" * CHUNK_MIN_BYTES
    assert read(head + b"%x\r\n%s\r\n" % (len(body), body) * (CHUNKS_FREE + 1) + b"0\r\n\r\n")[1]
    assert read(head + b"1\r\nx\r\n" * (CHUNKS_FREE // 2) + b"0\r\n\r\n")[1]  # a small document in small pieces
