"""Choose the back end for a sandbox, and tell what to install if there is none."""

from __future__ import annotations

from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Platform
from runner.machine import qemu


def choose(wanted: str | None, platform: Platform) -> str:
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
    except RootdiskError:
        from runner.machine import krun

        if wanted is None and platform == Platform.host() and krun.is_installed():
            return "krun"
        raise
    return "qemu"
