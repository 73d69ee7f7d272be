"""Debian's packages, installed by mmdebstrap: the files after the base system, and again with Python on top."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.system import process

SUITE = "bookworm"
PACKAGES = "python3-minimal"

# Rebuilt on use, or only good for the next installation: left out, as Debian's own images do.
_LEFT_OUT = ("snapshot.tar", "proc", "sys", "dev", "run", "var/cache", "var/lib/apt/lists", "var/log", "tmp")
_DOCUMENTATION = ("doc", "info", "locale", "man")


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Two tars of the whole system: the base, and the base with Python."""

    base: Path
    python: Path


def install(directory: Path, architecture: str, packages: str = PACKAGES) -> Snapshots:
    """Install into a throw-away root and leave its snapshots in `directory`; needs the network, and no root.

    BadInput: mmdebstrap is not installed. RootdiskError: it failed; its last lines are in the message.
    """
    if shutil.which("mmdebstrap") is None:
        raise BadInput("mmdebstrap is not installed", "apt-get install mmdebstrap uidmap, or start ./quickstart")
    snapshots = Snapshots(directory / "base.tar", directory / "python.tar")
    leave_out = " ".join(f"--exclude=./{path}" for path in _LEFT_OUT)
    tar = f'tar --one-file-system --numeric-owner --sort=name --xattrs "--xattrs-include=*" {leave_out} -C "$1" -cf "$1/snapshot.tar" .'
    argv = [
        *own_mounts(),
        "mmdebstrap",
        "--variant=minbase",
        "--format=null",
        f"--architectures={architecture}",
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=force-unsafe-io",  # a throw-away root need not survive a power cut
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _DOCUMENTATION),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--customize-hook={tar}",
        f"--customize-hook=download /snapshot.tar '{snapshots.base.name}'",
        '--customize-hook=rm "$1/snapshot.tar"',
        f'--customize-hook=chroot "$1" apt-get -y -qq install --no-install-recommends {packages} >/dev/null',
        f"--customize-hook={tar}",
        f"--customize-hook=download /snapshot.tar '{snapshots.python.name}'",
        SUITE,
        "-",
    ]
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "HOME": os.environ.get("HOME", "/"),
        "LC_ALL": "C",
        # Password files hold the day of their last change.
        "SOURCE_DATE_EPOCH": "0",
        **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
    }
    done = process.run(argv, cwd=directory, env=environment)
    if done.status:
        lines = [line for line in done.complaint.splitlines() if line.startswith(("E:", "W:", "Err"))][-3:]
        raise RootdiskError(
            f"mmdebstrap ended with {done.status}: {' '.join(lines) or done.complaint[-300:].strip()}",
            "is the network there, and as a plain user the package uidmap with a line for you in /etc/subuid?",
        )
    return snapshots


def own_mounts() -> list[str]:
    """Return what to put before mmdebstrap so that its mounts end with it, even if it is interrupted or killed.

    Root's mmdebstrap mounts /proc, /sys and parts of /dev in the new system, and leaves them there when it is interrupted. As
    another user it has mounts of its own, and a root who may not mount has none.
    """
    prefix = ["unshare", "--mount", "--"]
    if os.geteuid():
        return []
    try:
        return [] if process.run([*prefix, "true"]).status else prefix
    except OSError:
        return []
