"""Sockets with a name in a directory."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from rootdisk.durable import socket_address


def listening(folder: Path, name: str, backlog: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket that listens as `name` in `folder`. One that a killed process has left there is replaced."""
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        with socket_address(folder, name) as address:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
            listener.bind(address)
            listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
