"""The command serve: offer the store to other hosts, as a read-only registry."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import ssl
import stat
import sys
from pathlib import Path

from rootdisk.durable import open_file
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.registry.certificates import load_authorities, load_pair
from rootdisk.text import printable
from runner.store.store import Store

_TOKEN_MIN, _TOKEN_MAX = 16, 4096


def serve_command(options: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    host, port = _address(options.listen)
    token = _token(options.token_file) if options.token_file else None
    tls = _tls(options)
    if not ipaddress.ip_address(host).is_loopback and token is None and not options.tls_client_ca:
        raise BadInput(
            f"--listen {printable(options.listen, 80)} is open to others", "add --token-file, or --tls-client-ca"
        )
    from runner.serve.catalog import Catalog
    from runner.serve.server import Server

    store = Store.open()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as err:
        raise RootdiskError(f"--listen {printable(options.listen, 80)}: {err.strerror}", "choose another port") from err
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with listener:
        number = listener.getsockname()[1]
        shown = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
        print(f"serving {printable(store.root)} on {printable(shown)}", flush=True)
        try:
            Server(Catalog(store), listener, token, tls).run()
        except KeyboardInterrupt:
            return 130
    return 0


def _address(text: str) -> tuple[str, int]:
    """Split [ADDRESS:]PORT."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    try:
        ipaddress.ip_address(host)
        number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1
        if not 0 <= number < 65536:
            raise ValueError
    except ValueError:
        raise BadInput(
            f"--listen {printable(text, 80)!r}", "write [ADDRESS:]PORT, as 5001, 0.0.0.0:5001 or [::1]:5001"
        ) from None
    return host, number


def _token(path: Path) -> bytes:
    """Read the token, a line of a file that nobody else can read, or of somebody else's that our group can read."""
    try:
        with open(open_file(path), "rb") as file:
            status = os.fstat(file.fileno())
            token = file.read(_TOKEN_MAX + 1).strip()
    except OSError as err:
        raise BadInput(f"--token-file {printable(path)}: {err.strerror}", "name a file with one line") from err
    # Kubernetes gives a Secret to the pod's group: whose the file is has decided that.
    is_shared = status.st_mode & stat.S_IRWXG if status.st_uid == os.geteuid() else status.st_mode & stat.S_IWGRP
    if is_shared or status.st_mode & stat.S_IRWXO:
        raise BadInput(f"--token-file {printable(path)}: others can read it", f"chmod 600 {printable(path)}")
    if not _TOKEN_MIN <= len(token) <= _TOKEN_MAX or not all(0x21 <= byte <= 0x7E for byte in token):
        raise BadInput(
            f"--token-file {printable(path)}: not one line of {_TOKEN_MIN} to {_TOKEN_MAX} characters",
            "for example: openssl rand -hex 32",
        )
    return token


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if not options.tls_cert and not options.tls_key and not options.tls_client_ca:
        return None
    if not options.tls_cert or not options.tls_key:
        raise BadInput("TLS needs --tls-cert and --tls-key", "give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, Path(options.tls_cert), Path(options.tls_key), ("--tls-cert", "--tls-key"))
    if options.tls_client_ca:
        load_authorities(context, Path(options.tls_client_ca), "--tls-client-ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context
