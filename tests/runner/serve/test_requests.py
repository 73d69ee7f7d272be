"""Requests to `runner serve`: parsed from bounded text, and nothing but a digest leads to a file."""

from __future__ import annotations

import base64

import pytest

from runner.serve.requests import byte_range, is_allowed, parse, range_of, wanted

HEX = "0" * 64


def test_a_request() -> None:
    request = parse(f"GET /v2/app/blobs/sha256:{HEX}?ns=registry.test HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9".encode())
    assert request is not None
    assert (request.method, request.registry, request.keeps_alive) == ("GET", "registry.test", True)
    assert wanted(request.path) == ("app", "blobs", f"sha256:{HEX}")
    assert request.headers["range"] == "bytes=0-9"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET / HTTP/2",
        b"GET / HTTP/1.1 ",
        b"GET  / HTTP/1.1",
        b"GET http://other/ HTTP/1.1",
        b"GET / HTTP/1.1\r\nA : b",
        b"GET / HTTP/1.1\r\nA: b\r\n c",
        b"GET / HTTP/1.1\r\nA: b\nB: c",
        b"GET / HTTP/1.1\r\nA: 1\r\na: 2",
        b"GET / HTTP/1.1\r\nContent-Length: 5",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1" + b"\r\nA: b" * 65,
        b"GET /\x00 HTTP/1.1",
    ],
)
def test_what_is_no_request(head: bytes) -> None:
    assert parse(head) is None


@pytest.mark.parametrize(
    "path",
    [
        "/v2/app/manifests/latest",
        "/v2/app/tags/list",
        f"/v2/../blobs/sha256:{HEX}",
        f"/v2//etc/blobs/sha256:{HEX}",
        f"/v2/app/blobs/sha256:{HEX}/../../passwd",
        f"/v2/app/blobs/sha256:../{HEX}",
        f"/v2/app/blobs/sha256:{HEX[:-1]}G",
        f"/v2/app/blobs/sha256:{HEX}\n",
    ],
)
def test_paths_that_lead_nowhere(path: str) -> None:
    assert wanted(path) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (0, 10)),
        ("bytes=0-3", (0, 4)),
        ("bytes=4-", (4, 10)),
        ("bytes=4-99", (4, 10)),
        ("bytes=10-", None),
        ("bytes=5-4", None),
        ("bytes=-4", (0, 10)),
        ("bytes=0-1,3-4", (0, 10)),
    ],
)
def test_ranges(text: str, found: tuple[int, int] | None) -> None:
    assert byte_range(text, 10) == found


@pytest.mark.parametrize(
    ("method", "text", "found"),
    [("GET", "bytes=0-3", "bytes=0-3"), ("GET", "bytes=-3", ""), ("GET", "items=0-3", ""), ("HEAD", "bytes=0-3", "")],
)
def test_a_range_that_counts(method: str, text: str, found: str) -> None:
    request = parse(f"{method} /v2/ HTTP/1.1\r\nRange: {text}".encode())
    assert request is not None
    assert range_of(request) == found


def test_tokens() -> None:
    token = b"0123456789abcdef"
    basic = base64.b64encode(b"ann:" + token).decode()
    assert is_allowed({}, None)
    assert is_allowed({"authorization": f"Bearer {token.decode()}"}, token)
    assert is_allowed({"authorization": f"basic {basic}"}, token)
    for wrong in ("", "Bearer", "Bearer 0", f"Digest {token.decode()}", "Basic !!", f"Basic {basic[:-4]}"):
        assert not is_allowed({"authorization": wrong}, token)
