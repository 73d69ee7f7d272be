"""What servers may do on the wire: odd answers, early ones, connections that end at the wrong moment."""

from __future__ import annotations

import contextlib
import gzip
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from imagetool.sources.content import pieces
from imagetool.targets.open import open_target
from rootdisk.errors import BadInput, RegistryError, RootdiskError
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.oci.layout import LayoutRepository
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.places import open_repository
from rootdisk.registry.dial import ConnectTimeout, Place, dial
from tests.support.commands import ROOT
from tests.support.layouts import write_layout
from tests.support.processes import open_files
from tests.support.tars import END, file
from tests.support.wire import Wire, run_wire

MANIFEST = b'{"schemaVersion": 2, "config": {}, "layers": []}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(MANIFEST), MANIFEST)
QUICK = RegistryOptions(plain_http=True, give_up_s=0.01)

pytestmark = pytest.mark.usefixtures("nobody")


def resolve(name: str, options: RegistryOptions = QUICK) -> Digest:
    with contextlib.closing(open_repository(parse_reference(f"{name}/a/b:v1"), options)) as repository:
        return repository.resolve("v1").digest


def saying(data: bytes) -> Callable[[Wire], None]:
    def speak(wire: Wire) -> None:
        wire.head()
        wire.send(data)

    return speak


@pytest.mark.parametrize("interim", ["100 Continue", "102 Processing", "103 Early Hints\r\nLink: </a>"])
def test_interim_answers_are_passed_over(interim: str) -> None:
    with run_wire(saying(f"HTTP/1.1 {interim}\r\n\r\n".encode() * 3 + GOOD)) as name:
        assert resolve(name) == Digest.of(MANIFEST)


@pytest.mark.parametrize("status", [b"100", b"103"])
def test_interim_answers_without_end(status: bytes) -> None:
    def speak(wire: Wire) -> None:
        while True:
            wire.send(b"HTTP/1.1 %s X\r\n\r\n" % status * 100)

    with run_wire(speak) as name, pytest.raises(RegistryError, match="more than 20 interim answers"):
        resolve(name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "its answer is not HTTP"),
        (b"<html>hello</html>\n", "its answer is not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "its answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "its answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "its answer is not HTTP"),
        (b"", "the connection was closed"),
        (GOOD[:-1], "the connection was closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "the connection was closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 70_000, "its answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", "the connection was closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(MANIFEST), "the answer is compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: GZIP\r\n\r\n" + gzip.compress(MANIFEST), "the answer is compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n{" % 10**18, "more than the 4194304 bytes allowed"),
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "check user and password in HTTP_PROXY"),
    ],
)  # fmt: skip
def test_what_is_not_an_answer_is_named(data: bytes, message: str) -> None:
    with run_wire(saying(data)) as name, pytest.raises(RegistryError, match=message) as error:
        resolve(name)
    assert error.value.temporary == (message == "the connection was closed")


def test_a_compressed_answer_is_named_wherever_it_comes() -> None:
    """A blob, of which only the bytes count, and the answer of a token service."""
    data = bytes(5000)
    blob = Descriptor("a/b", Digest.of(data), len(data))
    compressed = gzip.compress(data)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n"

    def read(answer: bytes) -> bytes:
        with (
            run_wire(saying(answer)) as name,
            contextlib.closing(open_repository(parse_reference(f"{name}/a/b:v1"), QUICK)) as repository,
        ):
            return b"".join(repository.blob(blob))

    assert read(b"%sContent-Length: %d\r\n\r\n" % (head, len(data)) + data) == data
    for length in (b"", b"Content-Length: %d\r\n" % len(compressed)):
        with pytest.raises(RegistryError, match="the answer is compressed, gzip"):
            read(head + length + b"\r\n" + compressed)

    def speak(wire: Wire) -> None:
        place = "{}:{}".format(*wire.sock.getsockname())
        while request := wire.head():
            if b"/token" in request:
                wire.answer("200 OK", gzip.compress(b'{"token": "x"}'), "Content-Encoding: gzip")
            else:
                wire.answer("401 X", b"", f'WWW-Authenticate: Bearer realm="http://{place}/token"')

    with run_wire(speak) as name, pytest.raises(RegistryError, match="the answer is compressed, gzip"):
        resolve(name)


def test_who_fails_after_a_redirect_is_named() -> None:
    """And a token service that cannot be reached; what a query has stays secret."""
    for answer, words in (
        (b"302 X\r\nLocation: http://storage.invalid/x?sig=secret", ("after a redirect, storage.invalid: cannot",)),
        (b'401 X\r\nWWW-Authenticate: Bearer realm="http://auth.invalid/t?sig=secret"', ("token service", "auth.invalid: c")),
    ):  # fmt: skip
        speak = saying(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % answer)
        with run_wire(speak) as name, pytest.raises(RegistryError) as error:
            resolve(name)
        assert all(word in str(error.value) for word in (name, *words))
        assert "secret" not in str(error.value)


def test_no_more_descriptors_is_said() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    repository = open_repository(parse_reference("127.0.0.1:1/a/b:v1"), QUICK)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    held = [os.dup(0) for _ in range(highest)]  # fills what is free below
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(RegistryError, match="Too many open files"):
            repository.resolve("v1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
        repository.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_connection_that_closes_when_it_is_used_again(method: str) -> None:
    """What may be asked twice is asked twice, without a pause."""
    asked: list[bytes] = []

    def speak(wire: Wire) -> None:
        asked.append(wire.head())
        wire.answer("404 X" if b"/first" in asked[-1] else "200 OK", MANIFEST)
        if asked[-1].startswith(b"GET /v2/a/b/manifests/first"):
            asked.append(wire.head())  # and closes

    with run_wire(speak) as name:
        repository = open_target(parse_reference(f"{name}/a/b:v1"), QUICK)
        with repository.client.request("GET", "manifests/first", expect=(404,)) as response:  # type: ignore[attr-defined]
            response.read(1000, 1)
        if method == "GET":
            assert repository.client.get("manifests/second", 1000, {})[0] == MANIFEST  # type: ignore[attr-defined]
        else:
            with pytest.raises(RegistryError, match="the connection was closed"):
                repository.client.request("POST", "x", expect=(200,))  # type: ignore[attr-defined]
        repository.close()
    assert [head.split()[0] for head in asked[1:]] == [method.encode()] * (2 if method == "GET" else 1)


DATA = os.urandom(1 << 20) * 12
BLOB = Descriptor("application/octet-stream", Digest.of(DATA), len(DATA))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    authority, path = trustme.CA(), tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return authority, path


@pytest.mark.parametrize("how", ["resets", "waits"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "tls"])
def test_an_upload_that_is_refused_early(authority: tuple[trustme.CA, Path], is_tls: bool, how: str) -> None:
    """The answer is told, though the server closes the connection, or leaves it, without reading the body."""
    over = threading.Event()

    def speak(wire: Wire) -> None:
        while head := wire.head():
            if head.startswith(b"HEAD"):
                wire.answer("404 X")
            elif head.startswith(b"POST"):
                wire.answer("202 X", b"", "Location: /up?state=secret")
            else:
                wire.answer("413 X", b'{"errors": [{"code": "DENIED", "message": "quota exceeded"}]}')
                if how == "waits":
                    over.wait(60)
                return

    options = QUICK._replace(plain_http=not is_tls, ca_file=authority[1] if is_tls else None)
    if how == "waits":
        options = options._replace(read_timeout_s=2)
    with run_wire(speak, authority[0] if is_tls else None) as name:
        target = open_target(parse_reference(f"{name}/a/b:v1"), options)
        with pytest.raises(RegistryError, match="413 DENIED: quota exceeded") as error:
            target.push_blob(BLOB, lambda: iter([DATA[at : at + 65536] for at in range(0, len(DATA), 65536)]))
        target.close()
        over.set()
    assert "secret" not in str(error.value)


def test_what_cannot_be_read_is_no_failure_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_layout(tmp_path / "l", "t", [file(b"f", b"x" * 100_000) + END])
    layout = LayoutRepository(tmp_path / "l")
    blob = next(iter(sorted((tmp_path / "l/blobs/sha256").iterdir())))
    wanted = Descriptor("application/octet-stream", Digest("sha256", blob.name), blob.stat().st_size)

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(RootdiskError, match=f"{tmp_path}/l: blobs/sha256/{blob.name}: Input/output error"):
        list(pieces(lambda: layout.blob(wanted)))
    layout.close()
    with pytest.raises(RootdiskError, match="Input/output error"):
        list(pieces(lambda: iter(broken, None)))


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_named_by_a_variable(
    authority: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for other in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    options = QUICK._replace(plain_http=False)
    with run_wire(saying(GOOD), authority[0]) as name:
        with pytest.raises(RegistryError, match=r"not trusted: unable to get local issuer.*--ca-file"):
            resolve(name, options)
        monkeypatch.setenv(variable, str(authority[1]))
        assert resolve(name, options) == Digest.of(MANIFEST)
        if variable != "SSL_CERT_FILE":
            monkeypatch.setenv(variable, "/nonexistent")
            with pytest.raises(BadInput, match=f"{variable} /nonexistent cannot be read: No such file"):
                resolve(name, options)


def test_a_certificate_for_another_name(authority: tuple[trustme.CA, Path]) -> None:
    options = QUICK._replace(plain_http=False, ca_file=authority[1])
    mismatch = pytest.raises(RegistryError, match=r"mismatch.*: use a name that the certificate has")
    with run_wire(saying(GOOD), authority[0], "other.invalid") as name, mismatch:
        resolve(name, options)


def test_dead_addresses_cost_a_moment() -> None:
    """The first that answers is taken. A backlog that is full is as silent as a network that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_server(("127.0.0.1", 0)) as good:
        silent, held = Place(socket.AF_INET, full.getsockname()), []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            held.append(sock)
        places = {
            **{f"silent {number}": silent for number in range(3)},
            "closed": Place(socket.AF_INET, ("127.0.0.1", 1)),
            "good": Place(socket.AF_INET, good.getsockname()),
        }
        before, started = open_files(), time.monotonic()
        key, sock = dial(places, 600, threading.Event())
        assert (key, time.monotonic() - started < 300) == ("good", True)
        sock.close()
        del places["good"]
        with pytest.raises(ConnectTimeout):
            dial(places, 0.5, threading.Event())
        with pytest.raises(ConnectionRefusedError):
            dial({"closed": places["closed"]}, 60, threading.Event())
        stopped = threading.Event()
        stopped.set()
        with pytest.raises(TimeoutError, match="aborted"):
            dial(places, 5, stopped)
        assert open_files().items() <= before.items()  # threads of earlier tests may close what they have left
        for sock in held:
            sock.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_push_ends_at_once(tmp_path: Path, number: int) -> None:
    """Though the registry takes no more, and all of its threads wait for it."""
    sending, over = threading.Semaphore(0), threading.Event()

    def speak(wire: Wire) -> None:
        while head := wire.head():
            if head.startswith(b"PUT"):
                sending.release()
                over.wait(60)
                return
            wire.answer(*(("202 X", b"", "Location: /up") if head.startswith(b"POST") else ("404 X",)))

    write_layout(tmp_path / "l", "t", [file(b"%d" % n, os.urandom(8 << 20)) + END for n in range(2)])
    with run_wire(speak) as name:
        process = subprocess.Popen(
            [sys.executable, "-m", "imagetool", "copy", "--plain-http", f"oci:{tmp_path}/l:t", f"{name}/a/b:1"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        for _ in range(2):
            assert sending.acquire(timeout=60)
        process.send_signal(number)
        assert b"Traceback" not in process.communicate(timeout=20)[1]
        over.set()
    assert process.returncode == 128 + number
