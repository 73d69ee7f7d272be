"""Kernel, initramfs and command line of a machine without the runner, and files that tell QEMU, Firecracker and KubeVirt of them."""

from __future__ import annotations

import json
import shlex
import zlib
from typing import Any, NamedTuple

from imagetool.guest.initramfs import INITRAMFS_MAX_BYTES
from rootdisk.artifact.compressed import BLOB_SLACK_BYTES, decompressed
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import Platform
from rootdisk.oci.repository import read_blob

BOOT_FILE_MAX_BYTES = 512 << 20
_CONSOLE = b"rootdisk.console="  # an init that knows the word has it in its program
_FIRECRACKER_CPUS_MAX = 32
_QEMU = {"amd64": ("qemu-system-x86_64", "q35"), "arm64": ("qemu-system-aarch64", "virt")}


class Boot(NamedTuple):
    """Kernel, initramfs and settings with which an artifact boots without the runner."""

    platform: Platform
    kernel: bytes
    initramfs: bytes
    cmdline: str
    memory_mib: int
    cpus: int
    vmlinux: bytes | None = None

    @classmethod
    def of(cls, artifact: PublishedArtifact) -> Boot:
        """Fetch what boots `artifact`.

        Raises:
            BadInput: It has no kernel, or nothing of rootdisk on its disk.
            Unsupported: Its init is older than booting without the runner.
        """
        config, roles = artifact.config, artifact.roles
        if roles.kernel is None or roles.initramfs is None or not config.layout_version:
            raise BadInput("the artifact has no kernel", "build it with a kernel in images.toml, and not with --plain")
        initramfs = read_blob(artifact.repository, roles.initramfs, BOOT_FILE_MAX_BYTES)
        if _CONSOLE not in _content(initramfs):
            raise Unsupported("the artifact's init needs the runner", "build the artifact again with this rootdisk")
        kernel = read_blob(artifact.repository, roles.kernel, BOOT_FILE_MAX_BYTES)
        vmlinux = None
        if roles.vmlinux is not None and config.vmlinux is not None:
            blob = read_blob(artifact.repository, roles.vmlinux, config.vmlinux.size + BLOB_SLACK_BYTES)
            vmlinux = b"".join(decompressed([blob], config.vmlinux, "the vmlinux"))
        return cls(config.platform, kernel, initramfs, config.cmdline, config.memory_mib, config.cpus, vmlinux)

    @property
    def kernel_args(self) -> str:
        """The kernel command line of a machine that ends by being powered off."""
        return f"{self.cmdline} rootdisk.console=poweroff"


def _content(initramfs: bytes) -> bytes:
    """Return the archive in an initramfs; "" if it is not one of ours."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(initramfs, INITRAMFS_MAX_BYTES)
    except zlib.error:
        return b""


def qemu_script(boot: Boot, disk: str, disk_format: str) -> str:
    """Return a shell script that boots the files beside it with QEMU, the console on standard output."""
    program, machine = _QEMU[boot.platform.architecture]
    words = [
        *("exec", program, "-M", f"{machine},accel=kvm:tcg", "-m", f"{boot.memory_mib}M"),
        *("-drive", f"if=none,id=root,file={disk},format={disk_format}", "-device", "virtio-blk-pci,drive=root"),
        *qemu_options(boot),
    ]
    lines = [" ".join(map(shlex.quote, words[:2])), *_options(words[2:])]
    return '#!/bin/sh\ncd "$(dirname "$0")" || exit\n' + " \\\n  ".join([*lines, '"$@"']) + "\n"


def qemu_options(boot: Boot, folder: str = "") -> tuple[str, ...]:
    """Return QEMU's options for a machine but its type, memory and disk; kernel and initramfs are in `folder`."""
    return (
        *("-cpu", "max", "-smp", str(boot.cpus)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", f"{folder}vmlinuz", "-initrd", f"{folder}initramfs", "-append", boot.kernel_args),
        *("-device", "virtio-rng-pci", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
        *("-serial", "stdio"),
    )


def _options(words: list[str]) -> list[str]:
    """Return options with their values as lines of a shell script."""
    lines: list[str] = []
    for word in words:
        if word.startswith("-"):
            lines.append(word)
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return lines


def firecracker(boot: Boot, kernel: str) -> str:
    """Return a configuration for `firecracker --config-file`. Firecracker ends when its guest reboots, and has no network card here."""
    # Firecracker's serial port is ttyS0 on ARM too.
    cmdline = boot.cmdline.replace("console=ttyAMA0", "console=ttyS0")
    value: dict[str, Any] = {
        "boot-source": {
            "kernel_image_path": kernel,
            "initrd_path": "initramfs",
            "boot_args": f"{cmdline} rootdisk.console=reboot rootdisk.network=none",
        },
        "drives": [{"drive_id": "root", "path_on_host": "disk.raw", "is_root_device": False, "is_read_only": False}],
        "machine-config": {"vcpu_count": min(boot.cpus, _FIRECRACKER_CPUS_MAX), "mem_size_mib": boot.memory_mib},
        "entropy": {},
    }
    return json.dumps(value, indent=2) + "\n"


def virtual_machine_instance(boot: Boot, name: str, image: str) -> str:
    """Return KubeVirt's VirtualMachineInstance for a container disk, as YAML. JSON texts are YAML."""
    value = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name},
        "spec": {
            "architecture": boot.platform.architecture,
            "terminationGracePeriodSeconds": 10,
            "domain": {
                "cpu": {"cores": boot.cpus},
                "memory": {"guest": f"{boot.memory_mib}Mi"},
                "firmware": {
                    "kernelBoot": {
                        "kernelArgs": f"{boot.kernel_args} rootdisk.network=none",
                        "container": {"image": image, "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initramfs"},
                    }
                },
                "devices": {
                    "autoattachPodInterface": False,
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                    "rng": {},
                },
            },
            "volumes": [{"name": "root", "containerDisk": {"image": image}}],
        },
    }
    return "\n".join(_yaml(value)) + "\n"


def _yaml(value: Any, indent: str = "") -> list[str]:
    """Return the lines of a block of YAML; texts are quoted as JSON."""
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            nested = isinstance(item, (dict, list)) and item
            lines += (
                [f"{indent}{key}:", *_yaml(item, indent + "  ")] if nested else [f"{indent}{key}: {json.dumps(item)}"]
            )
        return lines
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            first, *rest = _yaml(item, indent + "  ")
            lines += [f"{indent}- {first.strip()}", *rest]
        return lines
    return [f"{indent}{json.dumps(value)}"]
