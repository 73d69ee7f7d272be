"""Ports for programs that are told one."""

from __future__ import annotations

import contextlib
import random
import socket

# Below those that Linux gives to whoever binds to port 0, and to the near end of each connection.
_PORTS = range(15_000, 32_000)
_CHANCE = random.SystemRandom()  # others seed the usual one, so two processes may have the same numbers


def free_port(host: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> int:
    """Return a port that is free, and that nobody gets by chance before a program binds to it."""
    while True:
        port = _CHANCE.choice(_PORTS)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock,
        ):
            sock.bind((host, port))
            return port
