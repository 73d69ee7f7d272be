"""User network through passt, if it is installed: faster than that of QEMU, and a separate confined process."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from rootdisk.system import process
from runner.machine.model import Forward, Helper
from runner.machine.resolver import FORWARDER, FORWARDER6


def is_usable() -> bool:
    """Return whether a new enough passt is installed. Versions of 2023 do not answer a guest that sends first."""
    path = process.find("passt")
    # Search for an option in the binary: its version is not always known, and running --help is slower.
    return path is not None and b"map-host-loopback" in Path(path).read_bytes()


def has_ipv6(routes: Path = Path("/proc/net/ipv6_route")) -> bool:
    """Return whether passt gives a guest IPv6: it does not on a host without an IPv6 route to others."""
    try:
        lines = [line.split() for line in routes.read_text().splitlines()]
    except OSError:
        return False
    return any(line[-1] != "lo" and not line[0].startswith(("fe8", "ff")) for line in lines if line)


def serve(forwards: Sequence[Forward], ipv6: bool = False, cgroup: Path | None = None) -> tuple[Helper, socket.socket]:
    """Start passt with the addresses of QEMU's user network, in `cgroup`. Return it and a socket connected to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        server = process.start(command(forwards, theirs.fileno(), ipv6), fds=[theirs.fileno()], cgroup=cgroup)
    return Helper(server, "the network", False), ours


def command(forwards: Sequence[Forward], fd: int, ipv6: bool = False) -> list[str]:
    """Return passt's argv. `ipv6`: the host has IPv6 name servers only, so that the guest needs IPv6 to reach them."""
    argv = ["passt", "--foreground", "--quiet", "--fd", str(fd), *([] if ipv6 else ["--ipv4-only"])]
    argv += ["--dns-forward", FORWARDER6] if ipv6 else []
    argv += ["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2", "--dns-forward", FORWARDER]
    argv += ["--no-dhcp", "--no-map-gw"]
    for forward in forwards:
        option = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
        argv += [option, f"{forward.address}/{forward.host}:{forward.guest}"]
    return argv
