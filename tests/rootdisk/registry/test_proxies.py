"""Registries behind a proxy: plain HTTP and TLS, each through a proxy that is asked over HTTP or TLS."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.parsing.urls import parse_url
from rootdisk.places import open_repository
from rootdisk.registry.proxies import proxy_for
from tests.support.registry import QuietHandler, be_nobody, serve
from tests.support.wire import Wire, run_wire

MANIFEST = b'{"schemaVersion": 2, "config": {}, "layers": []}'
BLOB = b"0123456789" * 30_000


class Registry(QuietHandler):
    def do_GET(self) -> None:  # noqa: N802
        self.send(200, MANIFEST if "/manifests/" in self.path else BLOB)


def proxy_handler(upstream: str, asked: list[tuple[str, str, str]]) -> type[QuietHandler]:
    """A proxy that leads everything to `upstream`, host:port; `asked`: method, target, Proxy-Authorization."""
    host, _, port = upstream.rpartition(":")

    class Proxy(QuietHandler):
        def note(self) -> None:
            asked.append((self.command, self.path, self.headers.get("Proxy-Authorization", "")))

        def do_GET(self) -> None:  # noqa: N802
            self.note()
            assert "Proxy-Authorization" in self.headers
            self.send(200, MANIFEST if "/manifests/" in self.path else BLOB)

        def do_CONNECT(self) -> None:  # noqa: N802
            self.note()
            if "refused" in self.path:
                self.send(403, b"no")
                return
            self.send_response(200)
            self.end_headers()
            with socket.create_connection((host, int(port))) as far:
                back = threading.Thread(target=carry, args=(far, self.connection), daemon=True)
                back.start()
                carry(self.connection, far)
                back.join(5)
            self.close_connection = True

    return Proxy


def carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


@pytest.mark.parametrize("is_tls_proxy", [False, True], ids=["http-proxy", "tls-proxy"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "tls"])
def test_through_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, is_tls: bool, is_tls_proxy: bool
) -> None:
    be_nobody(monkeypatch, tmp_path)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked: list[tuple[str, str, str]] = []
    options = RegistryOptions(plain_http=not is_tls, ca_file=tmp_path / "ca.pem", give_up_s=0.01)
    with serve(Registry, authority if is_tls else None, "registry.invalid") as registry:
        handler = proxy_handler(urlsplit(registry).netloc, asked)
        with serve(handler, authority if is_tls_proxy else None) as proxy:
            place = urlsplit(proxy).netloc
            monkeypatch.setenv("ALL_PROXY", f"{'https' if is_tls_proxy else 'http'}://ann:p%40w@{place}")
            with contextlib.closing(open_repository(parse_reference("registry.invalid/a/b:1"), options)) as repository:
                found = repository.resolve("1")
                size = found._replace(size=len(BLOB))
                assert b"".join(repository.blob(size)) == BLOB
            if is_tls:
                with pytest.raises(RegistryError, match=f"the proxy {place} answers 403.*HTTPS_PROXY"):
                    open_repository(parse_reference("refused.invalid/a/b:1"), options).resolve("1")
    assert {secret for *_, secret in asked} == {"Basic YW5uOnBAdw=="}
    if is_tls:
        assert [(method, target) for method, target, _ in asked[:2]] == [
            ("CONNECT", "registry.invalid:443"), ("CONNECT", "refused.invalid:443")
        ]  # fmt: skip
    else:
        assert [target for _, target, _ in asked] == [
            "http://registry.invalid/v2/a/b/manifests/1", f"http://registry.invalid/v2/a/b/blobs/{found.digest}"
        ]  # fmt: skip


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    be_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    options = RegistryOptions(give_up_s=0.01)
    with pytest.raises(RegistryError, match=r"the proxy 127\.0\.0\.1:1 fails: connection refused.*check HTTPS_PROXY"):
        open_repository(parse_reference("registry.invalid/a/b:1"), options).resolve("1")


@pytest.mark.parametrize(
    "text", ["http://ann:secret/7@proxy", "http://ann:secret 7@proxy", "socks5h://ann:secret7@proxy"]
)
def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("https_proxy", text)
    with pytest.raises(BadInput, match=r"https_proxy: .*write http://HOST:PORT") as error:
        proxy_for(parse_url("https://registry.invalid/"))
    assert "secret" not in str(error.value)


def test_a_wrong_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    be_nobody(monkeypatch, tmp_path)

    def refuse(wire: Wire) -> None:
        wire.head()
        wire.answer("407 Proxy Authentication Required")

    with run_wire(refuse) as place:
        monkeypatch.setenv("https_proxy", f"http://ann:secret7@{place}")
        with pytest.raises(RegistryError, match=f"the proxy {place} answers 407.*check user and password") as error:
            open_repository(parse_reference("registry.invalid/a/b:1"), RegistryOptions()).resolve("1")
        assert "secret" not in str(error.value)


def test_tls_in_tls_until_the_connection_closes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: trustme.CA
) -> None:
    """With bodies larger than buffers, of known length and not; and of a name that ends with a dot."""
    be_nobody(monkeypatch, tmp_path)
    data = BLOB * 10

    def speak(wire: Wire) -> None:
        head = wire.head()
        if b"/manifests/" in head:
            wire.answer("302 Found", b"", "Location: https://registry.invalid./moved")
        elif b"/moved" in head:
            wire.send(b"HTTP/1.1 200 OK\r\n\r\n" + MANIFEST)
        else:
            wire.answer("200 OK", data, "Connection: close")

    options = RegistryOptions(ca_file=tmp_path / "ca.pem", give_up_s=0.01)
    with (
        run_wire(speak, authority, "registry.invalid") as registry,
        serve(proxy_handler(registry, []), authority) as proxy,
    ):
        monkeypatch.setenv("https_proxy", proxy.replace("://", "://ann:pw@"))
        with contextlib.closing(open_repository(parse_reference("registry.invalid/a/b:1"), options)) as repository:
            found = repository.resolve("1")
            assert b"".join(repository.blob(found._replace(size=len(data)))) == data
