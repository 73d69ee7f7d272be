"""In a guest with --secret: what it has, and what the secret's host answers. Prints a dictionary."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from pathlib import Path

HOST, PORT = sys.argv[1], int(sys.argv[2])


def ask(host: str, value: str) -> str:
    out = b""
    request = f"GET /x HTTP/1.1\r\nHost: {host}:{PORT}\r\nAuthorization: Bearer {value}\r\nConnection: close\r\n\r\n"
    try:
        plain = socket.create_connection((host, PORT), 60)
        with ssl.create_default_context().wrap_socket(plain, server_hostname=host) as sock:
            sock.sendall(request.encode())
            while piece := sock.recv(1 << 16):
                out += piece
    except OSError as err:
        out += f"{type(err).__name__} {err}".encode()
    return out.decode()


value = os.environ["TOKEN"]
print(
    {
        "value": value,
        "variables": sorted(name for name, text in os.environ.items() if text.startswith("/run/rootdisk/author")),
        "answer": ask(HOST, value),
        "other": ask("other.test", value),
        "only": Path("/run/rootdisk/authorities.pem").read_bytes().count(b"BEGIN CERTIFICATE"),
    }
)
