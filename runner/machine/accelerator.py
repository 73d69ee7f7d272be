"""Choose the accelerator that works on this host.

An accessible /dev/kvm is not enough: on some hosts no normal kernel boots with it. On x86 the processor must have vmx or
svm. Beyond that only a boot can tell. Its result is kept until the host reboots or the guest's kernel or QEMU changes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from rootdisk.oci.documents import Platform

VERSION = 1  # of the file of verdicts


class Accelerator(NamedTuple):
    """An accelerator, and why it was chosen."""

    name: str  # as for QEMU: kvm or tcg
    reason: str
    known: bool  # False: not tried yet, KVM may fail


def choose(
    wanted: str | None,
    platform: Platform,
    verdicts: Path | None = None,
    kernel: Path | None = None,
    device: Path = Path("/dev/kvm"),
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> Accelerator:
    """Return `wanted`, or the accelerator that works for a guest of `platform`. `verdicts` is the file that `remember` writes."""
    if wanted:
        return Accelerator(wanted, "requested", True)
    if platform != Platform.host():
        return Accelerator("tcg", f"{platform} is not the platform of this host", True)
    if not device.exists():
        return Accelerator("tcg", f"there is no {device}", True)
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator("tcg", f"no access to {device}: add yourself to the group kvm", True)
    if os.uname().machine == "x86_64":
        words = set(cpuinfo.read_text("utf-8", "replace").split())
        if not words & {"vmx", "svm"}:
            return Accelerator("tcg", f"{device} exists, but the processor has neither vmx nor svm", True)
    works = _verdict(verdicts, kernel)
    if works is False:
        return Accelerator("tcg", f"{device} exists, but a guest did not start with it", True)
    return Accelerator("kvm", f"{device} works" if works else f"{device} looks usable", works is not None)


def remember(verdicts: Path, kernel: Path | None, works: bool) -> None:
    """Write down whether a guest with `kernel` has started with KVM. A file of another version is left alone."""
    from rootdisk.system.versions import write_versioned

    with contextlib.suppress(OSError):  # the next boot will try again
        write_versioned(verdicts, {"host": _host(kernel), "works": works}, VERSION)


def _verdict(verdicts: Path | None, kernel: Path | None) -> bool | None:
    """Return what an earlier boot has told about KVM, or None if nothing."""
    if verdicts is None:
        return None
    from rootdisk.system.versions import read_versioned

    try:
        value = read_versioned(verdicts, VERSION)
        return bool(value["works"]) if value["host"] == _host(kernel) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _host(kernel: Path | None) -> str:
    """Identify the boot of this host, the guest's kernel and the installed QEMU."""
    from rootdisk.system.process import find
    from runner.machine.qemu import PROGRAMS

    boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8", "replace").strip()
    programs = [path for name in PROGRAMS.values() if (path := find(name))]
    return " ".join([boot, kernel.name if kernel else "", *(f"{p} {os.stat(p).st_mtime_ns}" for p in programs)])
