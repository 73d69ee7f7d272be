"""A connection to the keeper of a running sandbox."""

from __future__ import annotations

import socket

from runner.files import socket_address
from runner.sandbox import State, Unreadable, not_running


def connect(state: State | Unreadable) -> socket.socket:
    """Connected to `state`'s keeper; BadInput if it does not run."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(state.folder, "control") as address:
            sock.connect(address)
    except OSError as err:
        sock.close()
        raise not_running(state) from err
    return sock
