"""Which accelerator really runs a guest here.

That /dev/kvm opens says nothing: there are hosts where it does and no ordinary kernel boots. On x86 a processor that
cannot virtualise shows neither vmx nor svm.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Accelerator(NamedTuple):
    name: str  # QEMU's: kvm or tcg
    reason: str


def choose(wanted: str | None, device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo")) -> Accelerator:
    """`wanted`, or what works here."""
    if wanted:
        return Accelerator(wanted, "asked for")
    if not device.exists():
        return Accelerator("tcg", f"there is no {device}")
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator("tcg", f"{device} may not be opened: add yourself to the group kvm")
    if os.uname().machine == "x86_64":
        words = set(cpuinfo.read_text(errors="replace").split())
        if not words & {"vmx", "svm"}:
            return Accelerator("tcg", f"{device} is there, but the processor shows neither vmx nor svm")
    return Accelerator("kvm", f"{device} works")
