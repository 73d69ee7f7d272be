"""Connect to the first of several addresses that answers.

A name often has an address that leads nowhere: IPv6 in a network that does not carry it, a server that is down. So the next
address is tried as soon as one has been silent for a moment (RFC 8305, section 5), and all have one deadline.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

STAGGER_S = 0.25


class ConnectTimeout(TimeoutError):
    """A host has no address that answers in time."""


class Place(NamedTuple):
    """An address of a host, as getaddrinfo names it."""

    family: int
    sockaddr: Any


def dial(places: Mapping[str, Place], seconds: float, stopped: threading.Event) -> tuple[str, socket.socket]:
    """Return the key of the first place that answers within `seconds`, and a socket that blocks so long at most.

    Raises:
        ConnectTimeout: None did.
        OSError: None can be connected to, or `stopped` is set.
    """
    waiting = list(places.items())
    asked: dict[int, tuple[str, socket.socket]] = {}
    poll = select.poll()
    deadline = time.monotonic() + seconds
    error = OSError("no address")
    try:
        while waiting or asked:
            if waiting:
                key, place = waiting.pop(0)
                sock = socket.socket(place.family, socket.SOCK_STREAM)
                asked[sock.fileno()] = key, sock
                sock.setblocking(False)
                if (status := sock.connect_ex(place.sockaddr)) not in (0, errno.EINPROGRESS):
                    error = OSError(status, os.strerror(status))
                    asked.pop(sock.fileno())[1].close()
                    continue
                poll.register(sock, select.POLLOUT)
            left_s = deadline - time.monotonic()
            if stopped.is_set():
                raise TimeoutError("aborted")
            if left_s <= 0:
                raise ConnectTimeout
            for fd, _ in poll.poll(1000 * min(left_s, STAGGER_S)):
                key, sock = asked.pop(fd)
                poll.unregister(fd)
                if not (status := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    sock.settimeout(seconds)
                    return key, sock
                error = OSError(status, os.strerror(status))
                sock.close()
        raise error
    finally:
        for _, sock in asked.values():
            sock.close()
