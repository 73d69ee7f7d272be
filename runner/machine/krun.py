"""Run a Machine with libkrun, in a separate process (krun_process.py).

libkrun brings its own kernel. The init of that kernel mounts the disk and executes /.rootdisk/init on it. The channel is a
virtio port as with QEMU; passt provides the network. libkrun could also give the guest sockets of the host (TSI). This is
disabled, because the guest could reach local services of the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.system import process
from runner.machine import passt, relay
from runner.machine.model import Machine, Share, Vm

LIBRARY = "libkrun.so.1"
CPUS_MAX = 255  # a byte of krun_set_vm_config()


def library() -> str:
    """Return the name or path of the library: ROOTDISK_LIBKRUN, or the default name."""
    return os.environ.get("ROOTDISK_LIBKRUN") or LIBRARY


def is_installed() -> bool:
    """Return whether libkrun can be loaded."""
    try:
        ctypes.CDLL(library())
    except OSError:
        return False
    return True


def check(machine: Machine) -> None:
    """Check that libkrun can run `machine`.

    Raises:
        BadInput: It cannot.
        RootdiskError: Something is not installed.
    """
    if machine.platform != Platform.host():
        raise BadInput(f"--backend krun: {machine.platform} does not run on {Platform.host()}", "use --backend qemu")
    if machine.accelerator != "kvm":
        raise BadInput("--backend krun needs KVM", "runner doctor says what is missing, or use --backend qemu")
    if machine.cpus > CPUS_MAX:
        raise BadInput(f"--cpus {machine.cpus}", f"libkrun supports at most {CPUS_MAX}")
    if len({share.rights for share in machine.shares if not share.read_only}) > 1:
        raise BadInput(
            "--backend krun: the volumes have different rights", "use dev and suid for all volumes or for none"
        )
    if machine.verity is not None:
        raise BadInput(
            "--backend krun: --read-only of an artifact with dm-verity",
            "libkrun's kernel does not check the disk: use --backend qemu",
        )
    if any(share.is_file for share in machine.shares):
        raise BadInput("--backend krun: --volume of a file", "share its directory, or use --backend qemu")
    if machine.network == "user" and not passt.is_usable():
        raise RootdiskError(
            "--backend krun: the network needs passt of 2024 or newer", "install it, or use --network none"
        )
    if machine.network == "user" and machine.ipv6 and not passt.has_ipv6():
        raise BadInput(
            "--backend krun: the host's name servers have IPv6 addresses only, and passt needs an IPv6 route for them",
            "use --backend qemu, or give an IPv4 name server: --dns 192.0.2.1",
        )


def start(machine: Machine, user: process.User | None = None) -> Vm:
    """Start a libkrun machine and the server of its network.

    The machine runs as `user`. With volumes it keeps the current user, because it serves them itself.

    Raises:
        BadInput, RootdiskError: As for `check`.
    """
    check(machine)
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        channel, channel_end = socket.socketpair()
        console, console_end = socket.socketpair()
        lanes = [socket.socketpair() for _ in range(machine.lanes)]
        for sock in (channel, console, *(lane for lane, _ in lanes)):
            ours.enter_context(sock)
        for sock in (channel_end, console_end, *(end for _, end in lanes)):
            theirs.enter_context(sock)
        lane_fds = [end.fileno() for _, end in lanes]
        fds = [channel_end.fileno(), console_end.fileno(), *lane_fds]
        helpers = []
        network = None
        if machine.network == "user":
            forwards, relaying = relay.serve(machine.forwards, user, machine.cgroup)
            if relaying is not None:
                ours.callback(relaying.process.kill)
                helpers.append(relaying)
            server, stream = passt.serve(forwards, machine.ipv6, machine.cgroup)
            ours.callback(server.process.kill)
            helpers.append(server)
            network = theirs.enter_context(stream).fileno()
            fds.append(network)
        described = os.memfd_create("machine", os.MFD_CLOEXEC)
        theirs.callback(os.close, described)
        described_machine = description(machine, fds[0], fds[1], network, None if machine.shares else user)
        os.write(described, json.dumps({**described_machine, "lanes": lane_fds}).encode())
        os.lseek(described, 0, os.SEEK_SET)
        argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("krun_process.py")), library()]
        running = process.start(
            [*argv, str(described)],
            fds=[*fds, described],
            file_max_bytes=machine.file_max_bytes,
            prepare=_confined(machine.shares),
            cgroup=machine.cgroup,
        )
        ours.pop_all()
        return Vm(running, channel, console, tuple(helpers), lanes=tuple(lane for lane, _ in lanes))


def _confined(shares: Sequence[Share]) -> Callable[[], None] | None:
    """Return a function for the new process that restricts it: no set-user-ID files and devices in volumes."""
    if not shares:
        return None
    from runner.machine import virtiofsd

    return virtiofsd.confined(frozenset().union(*(share.rights for share in shares if not share.read_only)))


def description(
    machine: Machine, channel: int, console: int, network: int | None, user: process.User | None
) -> dict[str, Any]:
    """Return the JSON value for krun_process.py.

    libkrun puts the environment on the kernel command line, where our init looks for its settings.
    """
    words = [word for word in machine.cmdline.split() if word.startswith("rootdisk.")]
    return {
        "cpus": machine.cpus,
        "memory_mib": machine.memory_mib,
        "disk": str(machine.disk),
        "disk_format": machine.disk_format,
        "durable": machine.durable,
        "channel": channel,
        "console": console,
        "network": network,
        "shares": [[share.tag, str(share.path), share.read_only] for share in machine.shares],
        "environment": ["KRUN_INIT_PID1=1", *words],
        "user": [user.uid, user.gid, list(user.groups)] if user else None,
    }
