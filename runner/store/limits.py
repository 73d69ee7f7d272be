"""Limits of the space that a store takes: a reserve of the host's disk, and a quota over all sandboxes.

    ROOTDISK_STORE_RESERVE=20g     bytes of the file system that the store leaves free
    ROOTDISK_STORE_QUOTA=100g      bytes that the disks of all sandboxes together may take

What is new is refused if it does not fit. The guests of sandboxes that grow get ENOSPC before a limit is reached.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from rootdisk.cli.sizes import parse_size
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.text import printable

RESERVE, QUOTA = "ROOTDISK_STORE_RESERVE", "ROOTDISK_STORE_QUOTA"


class Limits(NamedTuple):
    """The limits of a store, in bytes."""

    reserve: int = 0
    quota: int | None = None

    @classmethod
    def of_environment(cls) -> Limits:
        """Read the limits; BadInput names a variable that is not a size."""
        reserve, quota = _size(RESERVE), _size(QUOTA)
        return cls(reserve or 0, quota)


class Space(NamedTuple):
    """Space for the disks of sandboxes, in bytes."""

    free: int  # until the first limit; negative beyond it
    total: int  # of what the limit divides
    physical: int  # free in the file system
    is_quota: bool  # the quota is the first limit


def space(sandboxes: Path, limits: Limits) -> Space:
    """Measure the space in the directory of all sandboxes; OSError if it cannot be measured."""
    system = os.statvfs(sandboxes)
    physical, total = system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize
    free = physical - limits.reserve
    if limits.quota is None:
        return Space(free, total, physical, False)
    left = limits.quota - used(sandboxes)
    if left < free:
        return Space(left, min(total, limits.quota), physical, True)
    return Space(free, total, physical, False)


def used(sandboxes: Path) -> int:
    """Return the bytes that the disks of all sandboxes take."""
    return sum(map(disk_bytes, sandboxes.iterdir()))


def disk_bytes(folder: Path) -> int:
    """Return the bytes that the disk of the sandbox in `folder` takes."""
    count = 0
    for path in folder.glob("disk.*"):
        with contextlib.suppress(OSError):
            count += path.stat().st_blocks * 512
    return count


def check(root: Path, needed: int = 0, *, is_sandbox: bool = False) -> None:
    """Refuse what would not leave the reserve, or a new sandbox beyond the quota.

    `needed` is how many bytes will be written to the store at `root`.

    Raises:
        RootdiskError: It does not fit.
        BadInput: A variable is not a size.
    """
    limits = Limits.of_environment()
    if limits == Limits():
        return
    try:
        found = space(root / "sandboxes", limits if is_sandbox else limits._replace(quota=None))
    except OSError as err:
        raise RootdiskError(f"store {printable(root)}: {err.strerror}") from err
    if found.free > needed:
        return
    if found.is_quota:
        raise RootdiskError(
            f"the sandboxes' disks take {used(root / 'sandboxes') / 1e9:.1f} GB of {(limits.quota or 0) / 1e9:.1f} GB",
            f"remove some, or raise {QUOTA}",
        )
    raise RootdiskError(
        f"store {printable(root)}: {found.physical / 1e9:.1f} GB are free, and {limits.reserve / 1e9:.1f} GB must stay free",
        f"runner prune, or lower {RESERVE}",
    )


def _size(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return parse_size(text)
    except BadInput as err:
        raise BadInput(f"{name}: {err.message}", err.hint) from None
