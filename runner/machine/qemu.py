"""QEMU: a Machine as its command line, and the process that runs it.

`command` is pure. No defaults, no monitor but for the keeper (a full host disk is said there), no display; every disk's format is named; seccomp on. QEMU opens nothing by
name: kernel, disks and sockets come to it as descriptors, so that it may run as a user who sees none of the store.
The machine is `microvm` with PCI on x86, or `q35` of a QEMU that has no microvm; `virt` on ARM.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rootdisk.durable import open_file
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.system import process
from runner.machine.model import Machine, Vm

PROGRAMS = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
KINDS = ("microvm", "q35")
PACKAGES = {"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}


class Handles(NamedTuple):
    """The descriptors that QEMU inherits."""

    channel: int
    console: int
    monitor: int
    kernel: int
    initramfs: int
    disk: int
    base: int | None
    shares: tuple[int, ...] = ()  # connected to who serves each volume
    network: int | None = None  # connected to passt

    @property
    def all(self) -> list[int]:
        named = (
            self.channel,
            self.console,
            self.monitor,
            self.kernel,
            self.initramfs,
            self.disk,
            self.base,
            self.network,
        )
        return [fd for fd in (*named, *self.shares) if fd is not None]


def program(platform: Platform) -> str:
    """QEMU's path; RootdiskError says what to install."""
    name = PROGRAMS.get(platform.architecture)
    if name is None:
        raise RootdiskError(f"no QEMU machine for {platform}")
    path = process.find(name)
    if path is None:
        raise RootdiskError(f"{name} is not installed", f"apt-get install {PACKAGES[platform.architecture]}")
    return path


def kind(platform: Platform, known: Path) -> str:
    """The machine that this QEMU has for `platform`; what it said is kept in the file `known` until it is another QEMU."""
    if platform.architecture == "arm64":
        return "virt"
    path = program(platform)
    version = f"{path} {os.stat(path).st_mtime_ns}"
    from rootdisk.durable import read_json, write_json

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        value = read_json(known)
        if value["qemu"] == version:
            return KINDS[KINDS.index(value["kind"])]
    done = process.run([path, "-M", "help"], timeout_s=process.PROBE_S)
    found = "microvm" if re.search(r"^microvm\b", done.text, re.MULTILINE) else "q35"
    with contextlib.suppress(OSError):  # it will be asked again
        write_json(known, {"qemu": version, "kind": found})
    return found


def start(machine: Machine, folder: Path, user: process.User | None = None) -> Vm:
    """QEMU with `machine`, and what serves its volumes and network; their sockets are made in `folder`.

    `user` is whom QEMU becomes. RootdiskError where something it needs is not installed; nothing runs then.
    """
    qemu = program(machine.platform)
    if machine.kernel is None or machine.initramfs is None:
        raise BadInput("the artifact carries no kernel", "build it with a kernel in images.toml")
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as helpers:

        def opened(path: Path, flags: int) -> int:
            fd = open_file(path, flags)
            ours.callback(os.close, fd)
            return fd

        channel, channel_fd = _pair(ours)
        console, console_fd = _pair(ours)
        monitor, monitor_fd = _pair(ours)
        for sock in (channel, console, monitor):
            helpers.enter_context(sock)
        served, shares, network = [], [], None
        if machine.shares:
            from runner.machine import virtiofsd

            for share in machine.shares:
                server, sock = virtiofsd.serve(share, folder)
                helpers.callback(server.process.kill)
                served.append(server)
                shares.append(ours.enter_context(sock).fileno())
        if machine.network == "user":
            from runner.machine import passt

            if passt.is_usable():
                server, sock = passt.serve(machine.forwards)
                helpers.callback(server.process.kill)
                served.append(server)
                network = ours.enter_context(sock).fileno()
        handles = Handles(
            channel_fd,
            console_fd,
            monitor_fd,
            opened(machine.kernel, os.O_RDONLY),
            opened(machine.initramfs, os.O_RDONLY),
            opened(machine.disk, os.O_RDWR),
            opened(machine.base, os.O_RDONLY) if machine.base else None,
            tuple(shares),
            network,
        )
        running = process.start(
            command(qemu, machine, handles),
            fds=handles.all,
            user=user,
            file_max_bytes=machine.file_max_bytes,
        )
        helpers.pop_all()
        return Vm(running, channel, console, tuple(served), monitor)


def _pair(stack: contextlib.ExitStack) -> tuple[socket.socket, int]:
    """A socket, and the descriptor of its other end, which `stack` closes."""
    mine, theirs = socket.socketpair()
    return mine, stack.enter_context(theirs).fileno()


def command(qemu: str, machine: Machine, handles: Handles) -> list[str]:
    """QEMU's argv."""
    arm = machine.platform.architecture == "arm64"
    kind = machine.kind or ("virt" if arm else "microvm")
    if kind == "microvm":
        kind += ",acpi=on,pcie=on"
    # "max" of ARM authenticates pointers by a cipher, which by TCG takes three quarters of a boot.
    cpu = "host" if machine.accelerator == "kvm" else "neoverse-n1" if arm else "max"
    argv = [qemu, "-accel", machine.accelerator, "-cpu", cpu]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    argv += ["-m", f"{machine.memory_mib}M", "-smp", str(machine.cpus)]
    if machine.shares:  # who serves them reads the guest's memory
        argv += ["-object", f"memory-backend-memfd,id=memory,size={machine.memory_mib}M,share=on"]
        kind += ",memory-backend=memory"
    argv += ["-M", f"{kind},mem-merge=off"]  # pages that KSM shares tell one guest what another has
    argv += ["-kernel", f"/proc/self/fd/{handles.kernel}", "-initrd", f"/proc/self/fd/{handles.initramfs}"]
    argv += ["-append", machine.cmdline]
    argv += ["-chardev", f"socket,id=console,fd={handles.console}", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=monitor,fd={handles.monitor}", "-mon", "chardev=monitor,mode=control"]
    argv += _disk(machine, handles)
    argv += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=channel,fd={handles.channel}"]
    argv += ["-device", "virtserialport,chardev=channel,name=rootdisk"]
    argv += ["-device", "virtio-rng-pci"]
    for number, (share, fd) in enumerate(zip(machine.shares, handles.shares, strict=True)):
        argv += ["-chardev", f"socket,id=share{number},fd={fd}"]
        argv += ["-device", f"vhost-user-fs-pci,chardev=share{number},tag={share.tag}"]
    if machine.network == "user":
        argv += ["-netdev", _network(machine, handles), "-device", "virtio-net-pci,netdev=net,romfile="]
    return argv


def _disk(machine: Machine, handles: Handles) -> Sequence[str]:
    """The root disk, and under it its backing file, whatever name the overlay's header has for it."""
    # A disk that is thrown away with its sandbox need not wait for the host's disk when the guest flushes.
    cache = "" if machine.durable else ",cache.no-flush=on"
    argv = ["-add-fd", f"fd={handles.disk},set=1"]
    root = (
        f"node-name=root,driver={machine.disk_format},file.driver=file,file.filename=/dev/fdset/1,discard=unmap{cache}"
    )
    if handles.base is not None:
        argv += ["-add-fd", f"fd={handles.base},set=2"]
        base = "node-name=base,driver=raw,read-only=on,file.driver=file,file.filename=/dev/fdset/2"
        argv += ["-blockdev", base]
        root += ",backing=base"
    return [*argv, "-blockdev", root, "-device", "virtio-blk-pci,drive=root,werror=enospc,rerror=report"]


def _network(machine: Machine, handles: Handles) -> str:
    if handles.network is not None:
        return f"stream,id=net,server=off,addr.type=fd,addr.str={handles.network}"
    ports = (f",hostfwd={f.protocol}:{f.address}:{f.host}-:{f.guest}" for f in machine.forwards)
    return "user,id=net" + "".join(ports)
