"""Choose the back end for a sandbox, and tell what to install if there is none."""

from __future__ import annotations

import re
from pathlib import Path

from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Platform
from runner.machine import qemu

_ARCHITECTURES = ("amd64", "arm64")
# Commands that install QEMU for each of _ARCHITECTURES, by ID of os-release.
_INSTALL = {
    "debian": ("apt-get install qemu-system-x86", "apt-get install qemu-system-arm"),
    "fedora": ("dnf install qemu-system-x86-core", "dnf install qemu-system-aarch64-core"),
    "arch": ("pacman -S qemu-system-x86", "pacman -S qemu-system-aarch64"),
    "alpine": ("apk add qemu-system-x86_64", "apk add qemu-system-aarch64"),
    "suse": ("zypper install qemu-x86", "zypper install qemu-arm"),
}
_OS_RELEASE = Path("/etc/os-release")


def choose(wanted: str | None, platform: Platform, os_release: Path = _OS_RELEASE) -> str:
    """Return `wanted`, or QEMU if it is installed, else libkrun.

    Raises:
        RootdiskError: It is not installed; the hint says how to install it.
    """
    if wanted == "krun":
        from runner.machine import krun

        if not krun.is_installed():
            raise RootdiskError(
                f"{krun.library()} is not installed",
                "install libkrun 1.17 or newer with libkrunfw (dnf install libkrun), or omit --backend",
            )
        return "krun"
    try:
        qemu.program(platform)
    except RootdiskError as err:
        from runner.machine import krun

        if wanted is None and platform == Platform.host() and krun.is_installed():
            return "krun"
        raise RootdiskError(err.message, hint(platform, os_release)) from err
    return "qemu"


def hint(platform: Platform, os_release: Path = _OS_RELEASE) -> str:
    """Return the command that installs QEMU on this distribution, or those for all known ones."""
    if platform.architecture not in _ARCHITECTURES:
        return ""
    try:
        text = os_release.read_text("utf-8", "replace")
    except OSError:
        text = ""
    # ID=ubuntu, ID_LIKE=debian; ID_LIKE="suse opensuse"
    systems = " ".join(re.findall(r"^ID(?:_LIKE)?=(.*)", text, re.MULTILINE))
    number = _ARCHITECTURES.index(platform.architecture)
    known = [lines[number] for system, lines in _INSTALL.items() if system in systems]
    return known[0] if known else "; ".join(f"{system}: {lines[number]}" for system, lines in _INSTALL.items())
