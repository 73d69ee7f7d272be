"""A writable copy of a base disk for one sandbox; the base is only read.

overlay  a qcow2 file of our own over the base: the default, O(1), shares the base's page cache
reflink  a raw file that shares all blocks with the base: O(1) too, where the file system can (xfs, btrfs)
copy     a raw file with the base's data, holes as holes: works everywhere
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rootdisk.durable import advice, copy_sparse, opener, reflink, write_at
from rootdisk.errors import BadInput, RootdiskError
from runner.disk import qcow2

METHODS = ("overlay", "reflink", "copy")


class Clone(NamedTuple):
    """A sandbox's disk: raw, or a qcow2 overlay."""

    path: Path
    overlay: bool

    @property
    def form(self) -> str:
        return "qcow2" if self.overlay else "raw"


def clone(base: Path, size: int, folder: Path, method: str | None, patches: Mapping[int, bytes]) -> Clone:
    """The copy of `base` in `folder`, mode 0600, made `size` bytes long, with `patches` (bytes by offset) written over it.

    BadInput where `method` cannot be used here; RootdiskError where there is no room. Nothing is left then.
    """
    copy = Clone(folder / "disk.qcow2", True) if method in (None, "overlay") else Clone(folder / "disk.raw", False)
    try:
        if copy.overlay:
            qcow2.write_overlay(copy.path, base, size, _clusters(base, patches))
        elif method == "copy":
            copy_sparse(base, copy.path)
        elif not reflink(base, copy.path):
            raise BadInput("--clone reflink: the store's file system cannot", "leave --clone away")
        copy.path.chmod(0o600)
        if not copy.overlay:
            _patch(copy.path, size, patches)
    except OSError as err:
        copy.path.unlink(missing_ok=True)
        hint = advice(err, size, folder)
        raise RootdiskError(f"cannot copy the disk to {folder}: {err.strerror}", hint) from err
    return copy


def found(folder: Path) -> Clone:
    """The copy that was made in `folder`; RootdiskError where there is none."""
    for copy in (Clone(folder / "disk.qcow2", True), Clone(folder / "disk.raw", False)):
        if copy.path.exists():
            return copy
    raise RootdiskError(f"{folder}: the sandbox has no disk", "runner rm it")


def _clusters(base: Path, patches: Mapping[int, bytes]) -> dict[int, bytes]:
    """The clusters that `patches` touch, by offset: the base's bytes under the patches'; zeros at the end left away."""
    step = qcow2.CLUSTER_BYTES
    found: dict[int, bytearray] = {}
    with open(base, "rb", buffering=0, opener=opener) as file:
        for offset, data in patches.items():
            done = 0
            while done < len(data):
                start = (offset + done) // step * step
                if start not in found:
                    found[start] = bytearray(os.pread(file.fileno(), step, start))
                at = offset + done - start
                count = min(step - at, len(data) - done)
                found[start].extend(bytes(max(0, at + count - len(found[start]))))
                found[start][at : at + count] = data[done : done + count]
                done += count
    return {start: bytes(data) for start, data in found.items()}


def _patch(path: Path, size: int, patches: Mapping[int, bytes]) -> None:
    with open(path, "r+b", buffering=0, opener=opener) as file:
        os.ftruncate(file.fileno(), size)
        for offset, data in patches.items():
            write_at(file.fileno(), data, offset)
