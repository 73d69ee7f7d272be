"""The host's ports that a sandbox publishes: whether they are free, before anything else is done."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Iterable

from rootdisk.errors import BadInput
from runner.machine.model import Forward

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_UNPRIVILEGED = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


def check(forwards: Iterable[tuple[str, str, int, int]]) -> None:
    """Bind each port for a moment; BadInput says which is in use, or what it needs."""
    for forward in itertools.starmap(Forward, forwards):
        try:
            listener(forward).close()
        except OSError as err:
            raise _explained(err, forward) from err


def listener(forward: Forward) -> socket.socket:
    """Bind the host's port; of an IPv6 address, not that of IPv4 ones with it."""
    is_ipv6 = ":" in forward.address
    sock = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, KINDS[forward.protocol])
    try:
        if is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if forward.protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are ending do not count
        sock.bind((forward.address, forward.host))
        if forward.protocol == "tcp":
            sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock


def are_low(forwards: Iterable[Forward]) -> bool:
    """Return whether one of the ports is open to root alone."""
    try:
        with open(_UNPRIVILEGED, encoding="ascii") as file:
            first = int(file.read(16))
    except (OSError, ValueError):
        first = 1024
    return any(forward.host < first for forward in forwards)


def _explained(err: OSError, forward: Forward) -> BadInput:
    address = f"[{forward.address}]" if ":" in forward.address else forward.address
    what = f"--publish {address}:{forward.host}:{forward.guest}"
    kind = "" if forward.protocol == "tcp" else f"/{forward.protocol}"
    if err.errno == errno.EADDRINUSE:
        return BadInput(
            f"{what}: port {forward.host}{kind} is in use", "choose another, or stop what uses it: ss -lntup"
        )
    if err.errno in (errno.EACCES, errno.EPERM):
        other = forward.host + 8000 if forward.host < 1024 else 0
        hint = f"choose one from 1024 on, for example {other}:{forward.guest}" if other else os.strerror(err.errno)
        return BadInput(f"{what}: port {forward.host} needs root", hint)
    if err.errno == errno.EADDRNOTAVAIL:
        return BadInput(f"{what}: {forward.address} is not an address of this host", "see: ip address")
    return BadInput(f"{what}: {err.strerror}")
