"""`runner serve` with TLS, client certificates and tokens: real handshakes, and what is refused at each."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from rootdisk.registry import certificates
from tests.support.artifacts import noise, publish, sample
from tests.support.commands import Runner
from tests.support.faults import FaultProxy
from tests.support.registry import RunningRegistry, docker_config, needs_registry
from tests.support.serving import blob_bytes, mirrored, serving

pytestmark = needs_registry
MADE = sample(noise(6, 100_000))
TOKEN = "0123456789abcdef0123456789abcdef"
PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def write(certificate: trustme.LeafCert, folder: Path, name: str) -> None:
    (folder / f"{name}.cert").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(folder / f"{name}.key")


class Served(NamedTuple):
    address: str
    folder: Path  # with what a client may have: ca.crt, client.cert, other.cert, expired.cert
    reference: str
    home: Path


@pytest.fixture
def served(
    registry: RunningRegistry, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    """A server that wants a client certificate; the origin is behind `proxy`."""
    publish(MADE, f"{registry.name}/team/tls:1", registry.options)
    reference = f"{proxy.name}/team/tls:1"
    runner = Runner(tmp_path / "first")
    assert runner("pull", "--plain-http", reference).returncode == 0
    authority, clients = trustme.CA(), trustme.CA()
    folder = tmp_path / "certificates"
    folder.mkdir()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    clients.cert_pem.write_to_path(folder / "clients.crt")
    write(authority.issue_cert("127.0.0.1"), folder, "server")
    write(clients.issue_cert("second"), folder, "client")
    write(trustme.CA().issue_cert("second"), folder, "other")
    write(clients.issue_cert("second", not_before=PAST, not_after=PAST + datetime.timedelta(1)), folder, "expired")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    files = [str(folder / name) for name in ("server.cert", "server.key", "clients.crt")]
    with serving(runner.store, "--tls-cert", files[0], "--tls-key", files[1], "--tls-client-ca", files[2]) as address:
        yield Served(address, folder, reference, tmp_path / "home")


def ask(
    served: Served, client: str = "", *, trusted: str = "ca.crt", version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> bytes:
    """The first line of an answer; ssl.SSLError or ConnectionError if the handshake fails on either side."""
    context = ssl.create_default_context(cafile=str(served.folder / trusted))
    if client:
        context.load_cert_chain(served.folder / f"{client}.cert", served.folder / f"{client}.key")
    context.maximum_version = version
    host, _, port = served.address.partition(":")
    with (
        socket.create_connection((host, int(port)), 20) as sock,
        context.wrap_socket(sock, server_hostname=host) as tls,
    ):
        tls.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
        return tls.recv(4096).partition(b"\r\n")[0]


def test_handshakes(served: Served) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert ask(served, "client", version=version) == b"HTTP/1.1 200 OK"
        for client in ("", "other", "expired", "server"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                assert ask(served, client, version=version) == b"", client
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(served, "client", trusted="clients.crt")
    host, _, port = served.address.partition(":")
    with socket.create_connection((host, int(port)), 20) as sock:  # without TLS
        sock.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert not sock.recv(4096).startswith(b"HTTP")
    assert ask(served, "client") == b"HTTP/1.1 200 OK"


def place(served: Served, *names: str) -> None:
    """Give the next runner these certificates for the server."""
    folder = served.home / "containers/certs.d" / served.address
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in names:
        files = ["ca.crt"] if name == "ca" else [f"{name}.cert", f"{name}.key"]
        for file in files:
            shutil.copy(served.folder / file, folder)


def test_a_runner_shows_its_certificate(served: Served, proxy: FaultProxy, tmp_path: Path) -> None:
    """Without the right one it asks the origin, and gets the same."""
    for number, names in enumerate([("ca", "client"), ("ca", "expired"), ("client",)]):
        place(served, *names)
        runner = Runner(tmp_path / f"second-{number}")
        mirrored(runner, tmp_path, proxy.name, served.address, insecure=False)
        before = len(proxy.served)
        done = runner("pull", "--plain-http", served.reference)
        assert done.returncode == 0, done.stderr
        assert (blob_bytes(proxy, before) == 0) == (number == 0), names
        (disk,) = (runner.store / "disks").glob("*.raw")
        assert disk.read_bytes() == MADE.disk


def test_a_registry_says_that_it_wants_a_certificate(served: Served, tmp_path: Path) -> None:
    place(served, "ca")
    done = Runner(tmp_path / "second")("pull", f"{served.address}/team/tls@{MADE.artifact.descriptor.digest}")
    assert done.returncode == 125
    assert "it wants a client certificate" in done.stderr
    place(served, "ca", "client")
    folder = certificates.certificates_folder(served.address)
    assert folder is not None
    (folder / "client.key").unlink()
    done = Runner(tmp_path / "second")("pull", f"{served.address}/team/tls@{MADE.artifact.descriptor.digest}")
    assert done.returncode == 125
    assert "client.key cannot be read: No such file or directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_token_over_tls(served: Served, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    files = [str(served.folder / name) for name in ("server.cert", "server.key")]
    options = ("--tls-cert", files[0], "--tls-key", files[1], "--token-file", str(tmp_path / "token"))
    with serving(tmp_path / "first", *options) as address:
        tokens = served._replace(address=address)
        assert ask(tokens) == b"HTTP/1.1 401 Unauthorized"
        place(tokens, "ca")
        for number, password in enumerate((TOKEN, TOKEN[::-1])):
            monkeypatch.setenv(
                "DOCKER_CONFIG", str(docker_config(tmp_path / f"docker-{number}", **{address: ("any", password)}))
            )
            runner = Runner(tmp_path / f"second-{number}")
            mirrored(runner, tmp_path, proxy.name, address, insecure=False)
            before = len(proxy.served)
            assert runner("pull", "--plain-http", served.reference).returncode == 0
            assert (blob_bytes(proxy, before) == 0) == (number == 0)
