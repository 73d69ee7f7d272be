"""URLs, names of images, challenges, tokens, proxies' lists, record files, and what is shown of foreign text."""

from __future__ import annotations

import os
from unittest import mock
from urllib.parse import urlsplit

from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference
from rootdisk.registry.challenges import _token, parse_challenges
from rootdisk.registry.proxies import is_listed, proxy_for
from rootdisk.text import printable
from rootdisk.urls import parse_url, redact
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
