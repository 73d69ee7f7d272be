"""Ports of the host's IPv6 addresses: relayed to a port of 127.0.0.1 that QEMU or passt forwards to the guest.

Neither takes a connection to an IPv6 address for a guest that has an IPv4 address. docker does the same with a program of its own.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from rootdisk.system import process
from runner.machine.model import Forward, Helper
from runner.machine.ports import KINDS, listener


def serve(
    forwards: Sequence[Forward], user: process.User | None, cgroup: Path | None = None
) -> tuple[tuple[Forward, ...], Helper | None]:
    """Start what relays, in `cgroup`; return the forwards that are left for the network, and the helper if there is one."""
    others = [forward for forward in forwards if ":" in forward.address]
    if not others:
        return tuple(forwards), None
    sockets: list[socket.socket] = []
    words: list[str] = []
    inner: list[Forward] = []
    try:
        for forward in others:
            outside = listener(forward)
            sockets.append(outside)
            port = _free_port(forward.protocol)
            inner.append(Forward(forward.protocol, "127.0.0.1", port, forward.guest))
            words.append(f"{forward.protocol}:{outside.fileno()}:{port}")
        argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("relay_process.py")), *words]
        # It becomes that user itself: others may not be able to read this Python.
        argv += [f"user:{user.uid}:{user.gid}"] if user is not None else []
        server = process.start(argv, fds=[sock.fileno() for sock in sockets], cgroup=cgroup)
    finally:
        for sock in sockets:
            sock.close()
    return (*(forward for forward in forwards if forward not in others), *inner), Helper(server, "IPv6 ports", False)


def _free_port(protocol: str) -> int:
    with socket.socket(socket.AF_INET, KINDS[protocol]) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
