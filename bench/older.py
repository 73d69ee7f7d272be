"""A base system as it was before a few of its packages got newer: real versions, from apt's own lists."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from bench.peers import Missing


def debian_older(folder: Path, names: Sequence[str]) -> list[Path]:
    """The oldest package of each name that apt can get, of those with more than one version; Missing where there is none."""
    found: list[Path] = []
    for name in names:
        try:
            lines = _run(["apt-cache", "madison", name], folder).decode().splitlines()
            versions = list(dict.fromkeys(line.split("|")[1].strip() for line in lines if "Packages" in line))
            if len(versions) > 1:  # newest first
                _run(["apt-get", "-qq", "download", f"{name}={versions[-1]}"], folder)
        except (OSError, subprocess.CalledProcessError) as err:
            raise Missing(f"{name}: {err}") from err
        found += [path for path in folder.glob("*.deb") if path not in found]
    if not found:
        raise Missing("apt knows one version of each package only")
    return found


def replaced(base: Callable[[IO[bytes]], None], packages: Sequence[Path], folder: Path, out: IO[bytes]) -> None:
    """The tar that `base` writes, with the files of `packages` in place of those of the same name."""
    files: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    for package in packages:
        with tarfile.open(fileobj=io.BytesIO(_run(["dpkg-deb", "--fsys-tarfile", str(package)], folder))) as tar:
            for member in tar:
                data = tar.extractfile(member) if member.isreg() else None
                if data is not None:
                    files[member.name.removeprefix("./")] = member, data.read()
    whole = folder / "base.tar"
    with whole.open("wb") as file:
        base(file)
    with (
        tarfile.open(whole) as tar,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as layer,
    ):
        for member in tar:
            older = files.get(member.name) if member.isreg() else None
            if older is not None:
                member.size, member.mtime = len(older[1]), older[0].mtime
                layer.addfile(member, io.BytesIO(older[1]))
            else:
                layer.addfile(member, tar.extractfile(member) if member.isreg() else None)


def _run(command: list[str], cwd: Path) -> bytes:
    return subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
