"""The user network by passt, where it is installed: faster than QEMU's own, and confined apart from it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from rootdisk.system import process
from runner.machine.model import Forward, Helper


def is_usable() -> bool:
    """Whether there is a passt that is new enough: those of 2023 leave a guest that speaks first without an answer."""
    path = process.find("passt")
    # By an option that it has: it does not always say its version, and to ask for its help takes longer.
    return path is not None and b"map-host-loopback" in Path(path).read_bytes()


def serve(forwards: Sequence[Forward]) -> tuple[Helper, socket.socket]:
    """A passt with the addresses of QEMU's own user network, and a socket connected to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        server = process.start(command(forwards, theirs.fileno()), fds=[theirs.fileno()])
    return Helper(server, "the network", False), ours


def command(forwards: Sequence[Forward], fd: int) -> list[str]:
    """passt's argv."""
    argv = ["passt", "--foreground", "--quiet", "--fd", str(fd), "--ipv4-only"]
    argv += ["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2", "--dns-forward", "10.0.2.3"]
    argv += ["--no-dhcp", "--no-map-gw"]
    for forward in forwards:
        option = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
        argv += [option, f"{forward.address}/{forward.host}:{forward.guest}"]
    return argv
