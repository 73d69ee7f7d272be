"""URLs, names of images, challenges, tokens, proxies' lists, record files, and what is shown of foreign text."""

from __future__ import annotations

import os
from unittest import mock
from urllib.parse import urlsplit

from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference
from rootdisk.parsing.urls import parse_url, redact
from rootdisk.registry.challenges import _token, parse_challenges
from rootdisk.registry.messages import Answer, Closed, NotHttp
from rootdisk.registry.proxies import is_listed, proxy_for
from rootdisk.text import printable
from tests.fuzz.target import Target


def url(data: bytes) -> None:
    """A URL and where a second one leads from it, as header lines are read. What is asked for is read alike by others."""
    text, _, reference = data.decode("latin-1").partition("\n")
    redact(text)
    found = parse_url(text)
    joined = found.join(reference)
    for one in (found, joined):
        assert parse_url(str(one)) == one
        other = urlsplit(str(one))
        assert (other.scheme, other.hostname, other.port or one.port) == one.origin, (str(one), other)
        assert other.username is None
        assert str(one).isascii()
        assert one.shown.isprintable()


def reference(data: bytes) -> None:
    found = parse_reference(data.decode("utf-8", "surrogateescape"))
    if found.kind != "docker-daemon":
        assert parse_reference(str(found)) == found, found


def challenge(data: bytes) -> None:
    for scheme, fields in parse_challenges(data.decode("latin-1")).items():
        assert scheme == scheme.lower()
        assert all(isinstance(value, str) for value in fields.values())


def token(data: bytes) -> None:
    value, lifetime = _token(data)
    assert 0 <= lifetime <= 86400
    if not value:
        raise BadInput("no token")


def proxy(data: bytes) -> None:
    address, listed, host = (data.decode("utf-8", "surrogateescape").replace("\0", "") + "\n\n").split("\n")[:3]
    is_listed(host, 443, listed)
    with mock.patch.dict(os.environ, {"https_proxy": address, "no_proxy": listed}):
        proxy_for(parse_url("https://registry.example/v2/"))


class _Arriving:
    """A socket on which bytes arrive, so many at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step = data, step

    def recv(self, max_bytes: int, /) -> bytes:
        """Return some, b"" at the end."""
        count = min(max_bytes, self._step)
        piece, self._data = self._data[:count], self._data[count:]
        return piece


def answer(data: bytes) -> None:
    """An answer of a registry is the same one however it is cut, and its body ends once."""
    found: list[object] = []
    for step in (1 << 16, 1, 7):
        body = bytearray()
        try:
            message = Answer(_Arriving(data, step), "GET")
            while piece := message.read(1 << 16):
                body += piece
            assert message.read(1) == b""
            assert message.is_complete
            found.append((message.status, message.reason, bytes(body), message.stays))
        except (NotHttp, Closed) as err:
            found.append(type(err).__name__)
    assert len(set(found)) == 1, found
    if isinstance(found[0], str):
        raise BadInput(found[0])


def shown(data: bytes) -> None:
    for value in (data, data.decode("utf-8", "surrogateescape"), data.decode("utf-16-le", "surrogatepass" if len(data) % 2 == 0 else "replace")):  # fmt: skip
        text = printable(value)
        assert text.isprintable()
        assert len(text) <= 300
        text.encode()


TARGETS = {
    "url": Target(
        url,
        lambda: [
            b"https://registry.example:5000/v2/a/b?x=y&z=%20\n/v2/?a=b",
            b"HTTP://[::1]:80/\n//other/../x",
            b"https://10.0.0.1/\n../../a;b",
            b"http://localhost\nhttps://xn--bcher-kva.example/#f",
            b"https://a_b.example./%2e%2e/\n?",
        ],
        (b"://", b"@", b"\\", b"[::ffff:127.0.0.1]", b"0x7f.1", b"%00", b"//", b"..", b":65536", b"\xff"),
    ),
    "reference": Target(
        reference,
        lambda: [
            b"alpine",
            b"registry.example:5000/team/app:v1",
            b"a/b@sha256:" + b"0" * 64,
            b"oci:/a/b:tag",
            b"oci-archive:f.tar:x/y:z",
            b"docker-archive:f.tar:name:tag@sha512:" + b"1" * 128,
            b"docker-daemon:sha256:" + b"2" * 64,
            b"tar:/x",
            b"[::1]:80/a",
            b"localhost/x",
        ],
        (b"oci:", b"tar:", b"@sha256:", b"docker-daemon:", b"localhost/", b"__", b"\xff", b"\0"),
    ),
    "challenge": Target(
        challenge,
        lambda: [
            b'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull"',
            b'Basic realm="a\\"b", Bearer realm=x , scope = "y"',
            b"Negotiate, Basic",
        ],
        (b"Bearer ", b"Basic ", b'realm="', b'\\"', b'"', b",", b"="),
        max_bytes=9000,
        refuses=False,
    ),
    "answer": Target(
        answer,
        lambda: [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDocker-Content-Digest: sha256:00\r\n\r\nhello",
            b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\nHTTP/1.0 404 X\r\nConnection: keep-alive\r\n\r\n",
            b"HTTP/1.1 206 X\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\n",
            b"HTTP/1.1 200 OK\nA: b\n c\n\nto the end",
        ],
        (
            b"\r\n",
            b"\r\n\r\n",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked",
            b"Connection: close",
            b"0\r\n",
            b"ffffffff\r\n",
            b"\0",
        ),
    ),
    "token": Target(
        token,
        lambda: [
            b'{"token": "abc", "expires_in": 300}',
            b'{"access_token": "x", "expires_in": 1e400}',
            b'{"token": null}',
        ],
        (
            b'"token"',
            b'"access_token"',
            b'"expires_in"',
            b"1e999",
            b"NaN",
            b"Infinity",
            b"-Infinity",
            b"9" * 400,
            b"true",
        ),
    ),
    "proxy": Target(
        proxy,
        lambda: [
            b"http://user:secret@proxy.example:3128\nlocalhost,.example.org,10.0.0.0/8\nregistry.example",
            b"proxy:80\n*\n10.1.2.3",
            b"\n[::1]:443,fd00::/8\n::1",
            b"ftp://x",
        ],
        (b"://", b"@", b"/33", b"/-1", b"fe80::1%eth0", b"*.", b"[", b"]"),
    ),
    "printable": Target(
        shown,
        lambda: [b"plain", b"\x1b[2J\n\\", b"\xed\xa0\x80\xff", b"a" * 400, "\u202e\u2028ü".encode()],
        refuses=False,
    ),
}
