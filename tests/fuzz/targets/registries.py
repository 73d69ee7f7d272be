"""A registry that answers anything: status lines, headers, redirects, challenges, ranges, bodies; over a real socket.

The input is what the server sends, one answer after the other, each cut off by a line of dashes. Nothing but this server
is reached: the process refuses every other connection and every name.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from contextlib import closing
from functools import cache
from typing import Any
from unittest import mock

from imagetool.sources.docker import save_image
from imagetool.targets.registry import RegistryTarget
from rootdisk.errors import RegistryError
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.registry.repository import RegistryRepository
from tests.fuzz.target import Target
from tests.fuzz.targets.documents import MANIFEST as DOCUMENT

CUT = b"\n-----\n"
BLOB = b"0123456789" * 10
DESCRIPTOR = Descriptor("x/y", Digest.of(BLOB), len(BLOB))
OPTIONS = RegistryOptions(plain_http=True, connect_timeout_s=2, read_timeout_s=2, give_up_s=0.05)


class Server:
    """Gives the next answer to every connection, and closes it."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.answers: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()
        sys.addaudithook(self._only_here)

    def _only_here(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and tuple(arguments[1][:2]) != ("127.0.0.1", self.port):
            raise ConnectionRefusedError("not at this server")
        if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", b"127.0.0.1"):
            raise socket.gaierror("no such name")

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                try:
                    connection.settimeout(2)
                    head = b""
                    while not _is_whole(head) and (piece := connection.recv(65536)):
                        head += piece
                    connection.sendall(self.answers.pop(0) if self.answers else b"")
                except OSError:
                    continue


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d{1,6})", head.lower())
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


@cache
def server() -> Server:
    threading.stack_size(256 << 10)  # of those that look after waits, one an input: what they may use counts as memory
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ.pop(name, None)
    return Server()


def _answers(data: bytes) -> list[bytes]:
    return [answer.replace(b"PORT", b"%d" % server().port) for answer in data.split(CUT)[:8]]


def registry(data: bytes) -> None:
    """A tag, or a part of a blob, is asked for."""
    kind, _, rest = data.partition(b"\n")
    server().answers = _answers(rest)
    with closing(RegistryRepository(f"127.0.0.1:{server().port}", "team/app", OPTIONS)) as repository:
        if kind == b"tag":
            found = repository.resolve("v1")
            assert Digest.of(repository.manifest(found)) == found.digest
        elif kind == b"part":
            assert len(b"".join(repository.blob(DESCRIPTOR, 10, 60))) == 50
        elif kind == b"whole":
            assert len(b"".join(repository.blob(DESCRIPTOR))) == len(BLOB)
        else:
            raise RegistryError("nothing asked")


def target(data: bytes) -> None:
    """A registry that is written to, and a daemon that is asked for an image."""
    kind, _, rest = data.partition(b"\n")
    server().answers = _answers(rest)
    if kind == b"daemon":
        with mock.patch.dict(os.environ, {"DOCKER_HOST": f"tcp://127.0.0.1:{server().port}"}):
            save_image(parse_reference("docker-daemon:team/app:v1")).close()
        return
    with closing(RegistryTarget(f"127.0.0.1:{server().port}", "team/app", OPTIONS)) as place:
        if kind == b"tags":
            place.tags()
        elif kind == b"blob":
            place.push_blob(DESCRIPTOR, lambda: iter([BLOB]), mount="team/other")
        elif kind == b"manifest":
            place.push_manifest(SUBJECT, OCI_MANIFEST, ("v1",))
        elif kind == b"remove":
            place.remove(DESCRIPTOR.digest)
        else:
            raise RegistryError("nothing asked")


def token_service(data: bytes) -> None:
    """A challenge, and what the token service that it names answers; then the manifest."""
    header, _, rest = data.partition(b"\n")
    challenge = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nWWW-Authenticate: " + header + b"\r\n\r\n"
    server().answers = [challenge.replace(b"PORT", b"%d" % server().port), *_answers(rest)]
    with closing(RegistryRepository(f"127.0.0.1:{server().port}", "team/app", OPTIONS)) as repository:
        repository.resolve("v1")


def answer(status: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body])


MANIFEST = b'{"schemaVersion": 2, "config": {}, "layers": []}'
SUBJECT = json.dumps(DOCUMENT | {"mediaType": OCI_MANIFEST}).encode()
REALM = b'Bearer realm="http://127.0.0.1:PORT/token",service="s",scope="repository:team/app:pull"'
WORDS = (
    b"Content-Length: ", b"Content-Range: bytes 10-59/100", b"Location: ", b"Retry-After: ", b"Docker-Content-Digest: sha256:",
    b"Transfer-Encoding: chunked", b"WWW-Authenticate: ", b"Content-Encoding: gzip", b"Set-Cookie: a=b", b"\r\n", b"http://127.0.0.1:PORT/",
    b"HTTP/1.1 206 ", b"HTTP/1.0 200 ", b"HTTP/1.1 307 ", b"HTTP/1.1 100 \r\n\r\n", b"-1", b"99999999999999999999", b"ffffffffffffffff\r\n", CUT,
)  # fmt: skip


def registries() -> list[bytes]:
    found = answer(b"200 OK", MANIFEST, b"Content-Type: application/vnd.oci.image.manifest.v1+json")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(MANIFEST), MANIFEST)
    redirect = answer(b"307 Moved", b"", b"Location: http://127.0.0.1:PORT/elsewhere?secret=1")
    part = answer(b"206 Partial Content", BLOB[10:60], b"Content-Range: bytes 10-59/100")
    errors = b'{"errors": [{"code": "DENIED", "message": "no"}]}'
    return [
        b"tag\n" + found,
        b"tag\n" + chunked,
        b"tag\n" + CUT.join([redirect, answer(b"302 Found", b"", b"Location: /v2/x"), found]),
        b"part\n" + part,
        b"part\n" + CUT.join([redirect, answer(b"200 OK", BLOB)]),
        b"whole\n" + CUT.join([answer(b"503 Busy", errors, b"Retry-After: 1"), answer(b"200 OK", BLOB)]),
        b"whole\n" + answer(b"429 Many", errors, b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"),
        b"tag\n" + answer(b"403 Forbidden", errors),
        b"part\nHTTP/1.1 206 \r\nContent-Range: bytes 10-59/*\r\n\r\n" + BLOB[10:60],
    ]


def targets() -> list[bytes]:
    missing, found = answer(b"404 Not Found"), answer(b"200 OK", MANIFEST)
    begun = answer(b"202 Accepted", b"", b"Location: /v2/team/app/blobs/uploads/1?state=x")
    digest = b"Docker-Content-Digest: " + str(Digest.of(SUBJECT)).encode()
    return [
        b"tags\n" + CUT.join([answer(b"200 OK", b'{"tags": ["a"]}', b'Link: </v2/team/app/tags/list?last=a>; rel="next"'), answer(b"200 OK", b'{"tags": null}'), found]),
        b"blob\n" + CUT.join([missing, begun, answer(b"201 Created")]),
        b"blob\n" + CUT.join([missing, answer(b"202 Accepted"), begun, answer(b"502 Bad"), answer(b"204 No", b"", b"Range: 0-49"), answer(b"201 Created")]),
        b"blob\n" + CUT.join([missing, answer(b"201 Created")]),
        b"manifest\n" + CUT.join([answer(b"201 Created", b"", digest), missing, answer(b"201 Created", b"", digest)]),
        b"remove\n" + answer(b"202 Accepted"),
        b"remove\n" + CUT.join([missing, answer(b"200 OK")]),
        b"daemon\n" + answer(b"200 OK", b"archive"),
        b"daemon\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ]  # fmt: skip


def token_services() -> list[bytes]:
    found = answer(b"200 OK", MANIFEST)
    return [
        REALM + b"\n" + CUT.join([answer(b"200 OK", b'{"token": "abc", "expires_in": 300}'), found]),
        REALM + b"\n" + answer(b"401 No", b'{"errors": [{"code": "DENIED", "message": "\\u001b[2J"}]}'),
        b'Basic realm="x"\n' + found,
        b'Bearer realm="http://127.0.0.1:PORT/token"\n'
        + answer(b"200 OK", b'{"access_token": "abc", "expires_in": 1e999}'),
        b'Bearer realm="https://169.254.169.254/",scope="x"\n',
    ]


TARGETS = {
    "registry-target": Target(target, targets, (*WORDS, b"Link: <", b'>; rel="next"', b"Range: 0-", b'"tags"', b"null"), few=150),
    "registry": Target(registry, registries, WORDS, few=150),
    "token-service": Target(token_service, token_services, (*WORDS, b"Bearer realm=", b"Basic ", b'"token"', b'"expires_in"', b"1e999"), few=150),
}  # fmt: skip
