"""Real registries for tests: Debian's docker-registry on a free loopback port, with password, token service and TLS.

with run_registry(root, password=("ann", "secret"), tls=True) as registry:
    registry.name       # 127.0.0.1:34567
    registry.options    # RegistryOptions to reach it
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from rootdisk.oci.repository import RegistryOptions
from tests.support.ports import free_port
from tests.support.waiting import until

PROGRAM = "docker-registry"
needs_registry = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")


@dataclass(frozen=True)
class RunningRegistry:
    name: str  # host:port
    options: RegistryOptions
    root: Path
    authority: trustme.CA | None = None
    tokens: TokenServer | None = None

    def blob_file(self, digest: object) -> Path:
        """Where the registry keeps a blob, for tests that damage one."""
        algorithm, _, hex_ = str(digest).partition(":")
        return self.root / "data/docker/registry/v2/blobs" / algorithm / hex_[:2] / hex_ / "data"


@contextlib.contextmanager
def run_registry(
    root: Path,
    *,
    password: tuple[str, str] | None = None,
    tls: bool = False,
    token_lifetime_s: float | None = None,
    host: str = "127.0.0.1",
) -> Iterator[RunningRegistry]:
    """A registry with its data below `root`. With `token_lifetime_s` it wants bearer tokens from a small service, which
    gives pull to anybody and push to `password`'s user."""
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        authority = trustme.CA() if tls else None
        port = free_port(host.strip("[]"))
        name = f"{host}:{port}"
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(root / "data")}, "delete": {"enabled": True}},
            "http": {"addr": name},
        }
        if authority is not None:
            authority.cert_pem.write_to_path(root / "ca.pem")
            certificate = authority.issue_cert("127.0.0.1")
            certificate.private_key_and_cert_chain_pem.write_to_path(root / "server.pem")
            config["http"]["tls"] = {"certificate": str(root / "server.pem"), "key": str(root / "server.pem")}
        tokens = None
        if token_lifetime_s is not None:
            tokens = stack.enter_context(run_token_server(root, authority, password, token_lifetime_s))
            config["auth"] = {"token": tokens.registry_config()}
        elif password is not None:
            hashed = subprocess.run(
                ["htpasswd", "-niB", "-C", "5", password[0]],
                input=password[1].encode(),
                capture_output=True,
                check=True,
            ).stdout
            (root / "htpasswd").write_bytes(hashed)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(root / "htpasswd")}}
        (root / "config.json").write_text(json.dumps(config))  # YAML reads JSON
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(
                [PROGRAM, "serve", str(root / "config.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            )
        try:
            _wait_for(host.strip("[]"), port, process, root / "log")
            options = RegistryOptions(plain_http=not tls, ca_file=root / "ca.pem" if tls else None)
            yield RunningRegistry(name, options, root, authority, tokens)
        finally:
            process.kill()
            process.wait()


def be_nobody(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """No credentials of the machine's user: those of `home`/docker alone, where there are any."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "docker"))


def _wait_for(host: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return True
        assert process.poll() is None, f"{PROGRAM} did not start: {log.read_text()[-2000:]}"
        return False

    until(answers)


def docker_config(folder: Path, **auths: tuple[str, str]) -> Path:
    """A directory for DOCKER_CONFIG with a name and password by registry."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {host: {"auth": base64.b64encode(f"{u}:{p}".encode()).decode()} for host, (u, p) in auths.items()}
    (folder / "config.json").write_text(json.dumps({"auths": entries}))
    return folder


@dataclass
class TokenServer:
    """distribution's token specification, with tokens signed by a certificate the registry trusts."""

    url: str
    root: Path
    password: tuple[str, str] | None
    lifetime_s: float
    asked: list[dict[str, Any]] = field(default_factory=list)  # one entry a request: method, fields, who

    def registry_config(self) -> dict[str, str]:
        return {
            "realm": self.url,
            "service": "test-registry",
            "issuer": "test-tokens",
            "rootcertbundle": str(self.root / "token-cert.pem"),
        }

    def answer(self, method: str, fields: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        who = ""
        if self.password is not None:
            expected = "Basic " + base64.b64encode(":".join(self.password).encode()).decode()
            if authorization == expected or fields.get("refresh_token") == f"refresh-{self.password[1]}":
                who = self.password[0]
            elif authorization or "refresh_token" in fields:
                return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}
        self.asked.append({"method": method, "who": who, **fields})
        access = []
        for scope in fields.get("scope", "").split():
            kind, name, actions = scope.split(":")
            allowed = [a for a in actions.split(",") if who or a == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        token = self._sign(who, access)
        return 200, {"access_token" if method == "POST" else "token": token, "expires_in": max(60, self.lifetime_s)}

    def _sign(self, who: str, access: list[dict[str, Any]]) -> str:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        key = serialization.load_pem_private_key((self.root / "token-key.pem").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((self.root / "token-cert.pem").read_bytes())
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        now = int(time.time())
        chain = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        header = {"typ": "JWT", "alg": "ES256", "x5c": [chain]}
        claims = {
            "iss": "test-tokens", "sub": who, "aud": "test-registry", "jti": str(time.monotonic_ns()),
            "nbf": now - 5, "iat": now, "exp": now + int(self.lifetime_s), "access": access,
        }  # fmt: skip
        text = ".".join(_b64(json.dumps(part).encode()) for part in (header, claims))
        r, s = utils.decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextlib.contextmanager
def run_token_server(
    root: Path, authority: trustme.CA | None, password: tuple[str, str] | None, lifetime_s: float
) -> Iterator[TokenServer]:
    signer = trustme.CA(key_type=trustme.KeyType.ECDSA)
    signer.cert_pem.write_to_path(root / "token-cert.pem")
    signer.private_key_pem.write_to_path(root / "token-key.pem")

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.respond("GET", urlsplit(self.path).query)

        def do_POST(self) -> None:
            self.respond("POST", self.rfile.read(int(self.headers["Content-Length"])).decode())

        def respond(self, method: str, query: str) -> None:
            fields = {key: " ".join(values) for key, values in parse_qs(query).items()}
            status, value = tokens.answer(method, fields, self.headers.get("Authorization", ""))
            self.send(status, json.dumps(value).encode())

    with serve(Handler, authority) as url:
        tokens = TokenServer(f"{url}/token", root, password, lifetime_s)
        yield tokens


class QuietHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_END_S = 5.0  # for a thread whose connection is shut down


class QuietServer(ThreadingHTTPServer):
    """A server whose threads end with it."""

    daemon_threads = True
    request_queue_size = 128  # a connection that does not fit comes a second later

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ended = threading.Event()  # handlers wait for this in place of sleeping
        self._open: dict[threading.Thread, socket.socket] = {}

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open[threading.current_thread()] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._open[threading.current_thread()]

    def server_close(self) -> None:
        super().server_close()
        self.ended.set()
        for thread, sock in list(self._open.items()):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join(_END_S)

    def handle_error(self, *_: Any) -> None:
        """Clients that leave early are part of the tests."""


@contextlib.contextmanager
def serve(
    handler: type[BaseHTTPRequestHandler], authority: trustme.CA | None = None, name: str = "127.0.0.1"
) -> Iterator[str]:
    """An HTTP(S) server on a free loopback port, whose certificate is for `name`; its URL."""
    server = QuietServer(("127.0.0.1", 0), handler)
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"{'https' if authority is not None else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
