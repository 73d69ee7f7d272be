"""A connection to the keeper of a running sandbox."""

from __future__ import annotations

import os
import socket

from runner.sandbox import State, not_running


def connect(state: State) -> socket.socket:
    """Connected to `state`'s keeper; BadInput where it does not run."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory = os.open(state.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The folder's own path may be too long for an address.
            sock.connect(f"/proc/self/fd/{directory}/control")
        finally:
            os.close(directory)
    except OSError as err:
        sock.close()
        raise not_running(state) from err
    return sock
