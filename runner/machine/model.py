"""What both back ends are given and give back: a Machine in, a running Vm out."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from pathlib import Path
from typing import IO, NamedTuple

from rootdisk.oci.documents import Platform

_SPARE_BYTES = 1 << 30  # what a qcow2 file of a full disk may need beyond the disk


class Forward(NamedTuple):
    """A port of the host that leads to one of the guest."""

    protocol: str  # tcp or udp
    address: str  # of the host, IPv4
    host: int
    guest: int


class Share(NamedTuple):
    """A directory of the host in the guest."""

    tag: str  # what the guest mounts it by
    path: Path
    guest: str  # where it is mounted
    read_only: bool
    rights: frozenset[str] = frozenset()  # what else the guest may make in it: dev, suid


class Machine(NamedTuple):
    """A virtual machine: what it is made of and where its files are."""

    platform: Platform
    accelerator: str  # kvm or tcg
    memory_mib: int
    cpus: int
    kernel: Path | None
    initramfs: Path | None
    cmdline: str
    slot_digest: str  # 64 hex: for a back end whose kernel has a command line of its own
    disk: Path
    disk_format: str  # raw or qcow2
    disk_size: int  # bytes, as the guest sees it
    base: Path | None  # the raw backing file of a qcow2 disk
    durable: bool  # whether the guest's flushes reach the host's disk
    network: str  # user or none
    forwards: tuple[Forward, ...] = ()
    shares: tuple[Share, ...] = ()
    kind: str = ""  # QEMU's name for it; "": the usual one

    @property
    def file_max_bytes(self) -> int:
        """How long a file of the machine may become: its disk, or its memory where that is a file."""
        return max(self.disk_size, self.memory_mib << 20) + _SPARE_BYTES


def how_ended(status: int) -> str:
    """A process's exit status in words; "" for its own will."""
    if status >= 0:
        return "" if not status else f"exit status {status}"
    why = " (was the host out of memory?)" if status == -signal.SIGKILL else ""
    return f"{signal.Signals(-status).name}{why}"


class Helper(NamedTuple):
    """A process that serves a machine: a volume, the network."""

    process: subprocess.Popen[bytes]
    what: str  # it serves, for people to read
    is_waited_for: bool  # whether a guest would wait for its answers for ever


class Vm(NamedTuple):
    """A virtual machine that runs. It ends with the process that started it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket  # to the guest's init
    console: socket.socket  # what the guest's kernel says
    helpers: tuple[Helper, ...] = ()
    monitor: socket.socket | None = None  # QEMU's

    @property
    def talk(self) -> dict[str, IO[bytes]]:
        """What each process writes to its standard output and errors, by the name of its log."""
        found = {"machine.log": self.process.stdout}
        found.update({f"helper{number}.log": helper.process.stdout for number, helper in enumerate(self.helpers)})
        return {name: out for name, out in found.items() if out is not None}

    def kill(self) -> None:
        """Kill the machine and its helpers, and wait until nothing is left of them."""
        processes = [self.process, *(helper.process for helper in self.helpers)]
        for process in processes:
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()
        self.channel.close()
        self.console.close()
        if self.monitor is not None:
            self.monitor.close()

    def wait(self, timeout_s: float) -> str | None:
        """Wait up to `timeout_s` seconds for the machine's end.

        Returns how it ended, in words: "" if it ended by itself with status 0, None if it still runs.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            return how_ended(self.process.wait(timeout_s))
        return None
