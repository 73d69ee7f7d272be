"""The values that all back ends share: a Machine to start, and the running Vm."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from rootdisk.oci.documents import Platform

if TYPE_CHECKING:
    import subprocess

_SPARE_BYTES = 1 << 30  # overhead of the qcow2 file of a full disk


class Forward(NamedTuple):
    """A port of the host that is forwarded to a port of the guest."""

    protocol: str  # tcp or udp
    address: str  # IPv4 or IPv6 address of the host
    host: int
    guest: int


class Share(NamedTuple):
    """A directory or a file of the host that is mounted in the guest."""

    tag: str  # name of the virtiofs device
    path: Path
    guest: str  # mount point in the guest
    read_only: bool
    rights: frozenset[str] = frozenset()  # what the guest may also create in it: dev, suid
    is_file: bool = False


class Machine(NamedTuple):
    """The configuration of a virtual machine."""

    platform: Platform
    accelerator: str  # kvm or tcg
    memory_mib: int
    cpus: int
    kernel: Path | None
    initramfs: Path | None
    cmdline: str
    slot_digest: str  # 64 hex digits, for a back end that has its own kernel command line
    disk: Path
    disk_format: str  # raw or qcow2
    disk_size: int  # bytes
    base: Path | None  # the raw backing file of a qcow2 disk, or the socket of its server
    durable: bool  # whether a flush by the guest reaches the disk of the host
    network: str  # user or none
    forwards: tuple[Forward, ...] = ()
    shares: tuple[Share, ...] = ()
    ipv6: bool = False  # the guest needs IPv6, for the host's name servers
    lanes: int = 0  # ports for streams, beside the channel's
    kind: str = ""  # machine type of QEMU; "" for the default
    verity: Path | None = None  # the dm-verity tree, as a second disk
    verity_words: str = ""  # what the init is told of it
    is_own_network: bool = False  # QEMU's own network, even if there is passt
    has_balloon: bool = False  # the guest reports free memory to the host, which takes it back
    is_base_served: bool = False  # the base is not complete: QEMU reads it by NBD
    cgroup: Path | None = None  # its processes on the host are in it

    @property
    def file_max_bytes(self) -> int:
        """The size limit for files of the machine: its disk, or its memory if that is a file."""
        return max(self.disk_size, self.memory_mib << 20) + _SPARE_BYTES


def how_ended(status: int) -> str:
    """Describe a negative or nonzero exit status of a process; "" for 0."""
    if status >= 0:
        return "" if not status else f"exit status {status}"
    why = " (was the host out of memory?)" if status == -signal.SIGKILL else ""
    return f"{signal.Signals(-status).name}{why}"


class Helper(NamedTuple):
    """A process that serves a volume or the network of a machine."""

    process: subprocess.Popen[bytes]
    what: str  # what it serves, for messages
    is_waited_for: bool  # whether a guest waits forever if it is gone


class Vm(NamedTuple):
    """A running virtual machine. The kernel kills it when the process that started it ends."""

    process: subprocess.Popen[bytes]
    channel: socket.socket  # to the guest's init
    console: socket.socket  # output of the kernel
    helpers: tuple[Helper, ...] = ()
    monitor: socket.socket | None = None  # QEMU's
    lanes: tuple[socket.socket, ...] = ()  # for streams

    @property
    def talk(self) -> dict[str, IO[bytes]]:
        """The output of each process, by the name of its log file."""
        outputs = {"machine.log": self.process.stdout}
        outputs.update({f"helper{number}.log": helper.process.stdout for number, helper in enumerate(self.helpers)})
        return {name: out for name, out in outputs.items() if out is not None}

    def kill(self) -> None:
        """Kill the machine and its helpers, and wait for the end of all processes."""
        processes = [self.process, *(helper.process for helper in self.helpers)]
        for process in processes:
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()
        self.channel.close()
        self.console.close()
        for sock in (*self.lanes, *([self.monitor] if self.monitor else [])):
            sock.close()

    def wait(self, timeout_s: float) -> str | None:
        """Wait up to `timeout_s` seconds for the end of the machine.

        Return how it ended, as text: "" for exit status 0, None if it still runs.
        """
        from subprocess import TimeoutExpired  # loaded when the machine was started

        with contextlib.suppress(TimeoutExpired):
            return how_ended(self.process.wait(timeout_s))
        return None
