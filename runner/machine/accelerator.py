"""Which accelerator really runs a guest here.

That /dev/kvm opens says nothing: there are hosts where it does and no ordinary kernel boots. On x86 a processor that
cannot virtualise shows neither vmx nor svm. Beyond that only a boot tells; what it told is kept until the host boots
again, or kernel or QEMU is another.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from rootdisk.oci.documents import Platform


class Accelerator(NamedTuple):
    name: str  # QEMU's: kvm or tcg
    reason: str
    known: bool  # False: KVM may yet turn out to run nothing


def choose(
    wanted: str | None,
    platform: Platform,
    verdicts: Path | None = None,
    kernel: Path | None = None,
    device: Path = Path("/dev/kvm"),
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> Accelerator:
    """`wanted`, or what works here for a guest of `platform`; `verdicts` is the file that `remember` writes."""
    if wanted:
        return Accelerator(wanted, "asked for", True)
    if platform != Platform.host():
        return Accelerator("tcg", f"{platform} is not this machine's", True)
    if not device.exists():
        return Accelerator("tcg", f"there is no {device}", True)
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator("tcg", f"{device} may not be opened: add yourself to the group kvm", True)
    if os.uname().machine == "x86_64":
        words = set(cpuinfo.read_text("utf-8", "replace").split())
        if not words & {"vmx", "svm"}:
            return Accelerator("tcg", f"{device} is there, but the processor shows neither vmx nor svm", True)
    works = _verdict(verdicts, kernel)
    if works is False:
        return Accelerator("tcg", f"{device} is there, but a guest did not start with it", True)
    return Accelerator("kvm", f"{device} works" if works else f"{device} looks usable", works is not None)


def remember(verdicts: Path, kernel: Path | None, works: bool) -> None:
    """Whether a guest with `kernel` has started under KVM."""
    from rootdisk.durable import write_json

    with contextlib.suppress(OSError):  # it will be found out again
        write_json(verdicts, {"host": _host(kernel), "works": works})


def _verdict(verdicts: Path | None, kernel: Path | None) -> bool | None:
    if verdicts is None:
        return None
    from rootdisk.durable import read_json

    try:
        value = read_json(verdicts)
        return bool(value["works"]) if value["host"] == _host(kernel) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _host(kernel: Path | None) -> str:
    """This boot of this host, the guest's kernel, and the QEMU there is."""
    from rootdisk.system.process import find
    from runner.machine.qemu import PROGRAMS

    boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8", "replace").strip()
    programs = [path for name in PROGRAMS.values() if (path := find(name))]
    return " ".join([boot, kernel.name if kernel else "", *(f"{p} {os.stat(p).st_mtime_ns}" for p in programs)])
