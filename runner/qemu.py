"""Machine in, QEMU's command line out. Pure: nothing is started or read here but to find the program.

No defaults, no monitor, no display; every disk's format is named; seccomp on. The machine is `microvm` with PCI on
x86, `virt` on ARM.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from runner.errors import RootdiskError
from runner.oci import Platform

PROGRAMS = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
PACKAGES = {"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}


class Machine(NamedTuple):
    """A virtual machine: what it is made of and where its files are."""

    platform: Platform
    accelerator: str
    memory_mib: int
    cpus: int
    kernel: Path
    initramfs: Path
    cmdline: str
    disk: Path
    disk_format: str  # raw or qcow2
    console: Path
    channel_fd: int  # a connected socket that QEMU inherits
    network: bool


def program(platform: Platform) -> str:
    """QEMU's path; RootdiskError says what to install."""
    name = PROGRAMS.get(platform.architecture)
    if name is None:
        raise RootdiskError(f"no QEMU machine for {platform}")
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise RootdiskError(f"{name} is not installed", f"apt-get install {PACKAGES[platform.architecture]}")


def command(qemu: str, machine: Machine) -> list[str]:
    """QEMU's argv."""
    arm = machine.platform.architecture == "arm64"
    kind = "virt" if arm else "microvm,acpi=on,pcie=on"
    cpu = "host" if machine.accelerator == "kvm" else "max"
    name = _escaped(machine.disk)
    # A sandbox's disk is gone with it, so the guest's flushes need not wait for the host's disk.
    disk = f"node-name=root,driver={machine.disk_format},file.driver=file,file.filename={name},cache.no-flush=on"
    argv = [qemu, "-M", kind, "-accel", machine.accelerator, "-cpu", cpu]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    argv += ["-m", f"{machine.memory_mib}M", "-smp", str(machine.cpus)]
    argv += ["-kernel", str(machine.kernel), "-initrd", str(machine.initramfs), "-append", machine.cmdline]
    argv += ["-chardev", f"file,id=console,path={_escaped(machine.console)}", "-serial", "chardev:console"]
    argv += ["-blockdev", disk, "-device", "virtio-blk-pci,drive=root"]
    argv += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=channel,fd={machine.channel_fd}"]
    argv += ["-device", "virtserialport,chardev=channel,name=rootdisk"]
    argv += ["-device", "virtio-rng-pci"]
    if machine.network:
        argv += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]
    return argv


def _escaped(path: Path) -> str:
    """A path inside a comma-separated option."""
    return str(path).replace(",", ",,")
