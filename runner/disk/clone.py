"""Create a writable copy of a base disk for a sandbox. The base is only read.

overlay  a qcow2 file over the base: the default, takes constant time, shares the page cache of the base
reflink  a raw file that shares all blocks with the base: also constant time, needs xfs or btrfs
copy     a raw file with the data of the base, holes as holes: works on every file system
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rootdisk.durable import advice, copy_sparse, opener, reflink, write_at
from rootdisk.errors import BadInput, RootdiskError
from runner.disk import qcow2
from runner.disk.base import Base, BaseFile

METHODS = ("overlay", "reflink", "copy")


class Clone(NamedTuple):
    """The disk of a sandbox: raw, or a qcow2 overlay."""

    path: Path
    overlay: bool

    @property
    def form(self) -> str:
        """The disk format, as QEMU names it."""
        return "qcow2" if self.overlay else "raw"


def clone(
    base: Path, size: int, folder: Path, method: str | None, patches: Mapping[int, bytes], content: Base | None = None
) -> Clone:
    """Copy `base` to `folder`, with mode 0600.

    Args:
        base: The raw base disk.
        size: Bytes of the copy, at least those of the base.
        folder: Where the copy is created.
        method: One of METHODS; None means overlay.
        patches: Bytes by offset, written to the copy.
        content: The bytes of a base that is not complete yet.

    Raises:
        BadInput: The file system does not support `method`, or the base is not complete.
        RootdiskError: The copy failed; nothing is left of it.
    """
    copy = Clone(folder / "disk.qcow2", True) if method in (None, "overlay") else Clone(folder / "disk.raw", False)
    if content is not None and not copy.overlay:
        raise BadInput(f"--clone {method}: the disk is not complete yet", "use --pull missing, or omit --clone")
    try:
        if copy.overlay:
            qcow2.write_overlay(copy.path, base, size, _clusters(content, base, patches))
        elif method == "copy":
            copy_sparse(base, copy.path)
        elif not reflink(base, copy.path):
            raise BadInput("--clone reflink: the file system of the store does not support it", "omit --clone")
        copy.path.chmod(0o600)
        if not copy.overlay:
            _patch(copy.path, size, patches)
    except OSError as err:
        copy.path.unlink(missing_ok=True)
        hint = advice(err, size, folder)
        raise RootdiskError(f"cannot copy the disk to {folder}: {err.strerror}", hint) from err
    return copy


def existing(folder: Path) -> Clone:
    """Return the copy in `folder`.

    Raises:
        RootdiskError: There is none.
    """
    for copy in (Clone(folder / "disk.qcow2", True), Clone(folder / "disk.raw", False)):
        if copy.path.exists():
            return copy
    raise RootdiskError(f"{folder}: the sandbox has no disk", "delete it: runner rm")


def duplicate(disk: Path, folder: Path) -> None:
    """Copy the disk of a sandbox to the same name in `folder`, with mode 0600. Blocks are shared if possible.

    Raises:
        OSError: It cannot be copied.
    """
    target = folder / disk.name
    if not reflink(disk, target):
        copy_sparse(disk, target)
    target.chmod(0o600)


def _clusters(content: Base | None, path: Path, patches: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return the clusters that `patches` change, by offset: bytes of the base with the patches applied. They may be short."""
    step = qcow2.CLUSTER_BYTES
    clusters: dict[int, bytearray] = {}
    with contextlib.ExitStack() as stack:
        base = content or stack.enter_context(contextlib.closing(BaseFile(path)))
        for offset, data in patches.items():
            done = 0
            while done < len(data):
                start = (offset + done) // step * step
                at = offset + done - start
                count = min(step - at, len(data) - done)
                if start not in clusters:
                    clusters[start] = bytearray(b"" if count == step else base.read(start, step))
                clusters[start].extend(bytes(max(0, at + count - len(clusters[start]))))
                clusters[start][at : at + count] = data[done : done + count]
                done += count
    return {start: bytes(data) for start, data in clusters.items()}


def _patch(path: Path, size: int, patches: Mapping[int, bytes]) -> None:
    with open(path, "r+b", buffering=0, opener=opener) as file:
        os.ftruncate(file.fileno(), size)
        for offset, data in patches.items():
            write_at(file.fileno(), data, offset)
