"""The places of everything that tasks make, and the lock that keeps two runs apart.

A receipt is a small JSON file under cache/NAME/: source.json, kernel.json, disk.json, artifact.json, published.json. It says
what was made from what, and it is the edge between two tasks. Disks are in cache/disks/KEY/, by derivation key, so going back
to earlier inputs builds nothing; cache/NAME/disk is a link to the current one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from imagetool.config.images import Image
from rootdisk.durable import keep_others_out
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.system import locks
from rootdisk.text import printable

DISK = "disk"  # in cache/NAME: a link to the directory in cache/disks
LOCK_WAIT_S = 3600.0  # a build takes minutes, so a longer wait is an error


@dataclass(frozen=True, slots=True)
class Places:
    """The places of everything that tasks make."""

    cache: Path

    def of(self, image: Image) -> Path:
        """The image's own directory."""
        return self.cache / image.name

    def receipt(self, image: Image, name: str) -> Path:
        """The image's receipt of that name."""
        return self.of(image) / f"{name}.json"

    def index(self, image: Image) -> Path:
        """The receipt of the index over the platforms of the image's group."""
        return self.cache / image.group / "published.json"

    def init(self, platform: Platform) -> Path:
        """The directory of the guest's init: `init` and `init.json`."""
        return self.cache / "guest" / platform.architecture

    def disk(self, image: Image) -> Path:
        """The image's packed disk: a link to cache/disks/KEY."""
        return self.of(image) / DISK


def make_cache(cache: Path) -> None:
    """Make the cache directory. Other users cannot write to it.

    Raises:
        RootdiskError: it cannot be made, or its path cannot stand in a receipt.
    """
    try:
        str(cache).encode()
    except UnicodeEncodeError:
        hint = "move the project to a directory whose path is"
        raise RootdiskError(f"the path {printable(cache)} is not UTF-8", hint) from None
    keep_others_out()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        in_the_way = isinstance(err, (FileExistsError, NotADirectoryError))
        hint = "something else is in its place: move it" if in_the_way else "fix its owner and permissions"
        raise RootdiskError(f"cannot write to {cache}: {err.strerror}", hint) from err


def lock(cache: Path) -> int:
    """Be the only run in `cache` until this process ends; return the descriptor that holds the lock.

    doit itself does not lock, and two runs would lose each other's records. Wait for another run for an hour at most, and print
    which one it is.

    Raises:
        Busy: another run holds the lock for longer.
        RootdiskError: the cache cannot be written.
    """
    return locks.take(cache / ".lock", timeout_s=LOCK_WAIT_S, what=f"the cache {cache}", doing="doit")


def link(target: Path, name: Path) -> None:
    """Make `name` a relative link to `target`, in one step; relative, so that the project's directory may move."""
    name.parent.mkdir(parents=True, exist_ok=True)
    partial = name.with_name(f".{name.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, name.parent))
    try:
        partial.replace(name)
    except OSError as err:  # a directory is in its place
        partial.unlink()
        err.filename, err.filename2 = str(name), None
        raise
