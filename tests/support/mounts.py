"""File systems of every kind for tests, as root: on loop devices, in memory, as overlays."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

KINDS = ("ext4", "xfs", "btrfs", "tmpfs", "overlay")
SIZE = 400 << 20  # xfs wants 300 MiB at least

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@contextlib.contextmanager
def mounted(kind: str, work: Path, size: int = SIZE) -> Iterator[Path]:
    """A new, empty file system of `size` bytes below `work`."""
    place = work / kind
    place.mkdir(parents=True)
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    elif kind == "overlay":
        lower, upper, index = (work / name for name in ("lower", "upper", "index"))
        for folder in (lower, upper, index):
            folder.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={index}"
        command = ["mount", "-t", "overlay", "-o", options, "overlay", str(place)]
    else:
        program = f"mkfs.{kind}"
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        device = work / f"{kind}.img"
        with device.open("wb") as file:
            file.truncate(size)
        subprocess.run([program, "-q", str(device)], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(device), str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)
