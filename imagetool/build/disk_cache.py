"""Packed disks by derivation key, under `cache`/disks/KEY/: a disk that is kept need not be built again.

Beside the packed disk (imagetool/packing/reuse.py) is disk.json, its receipt: all that an artifact's config says about it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imagetool.build.receipts import DiskReceipt
from imagetool.packing.reuse import INDEX, KEYS, PARTS, TREE, blob_name
from imagetool.receipts import Damaged, check_file, load, made_again, save
from rootdisk.durable import fsync_dir
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest

RECEIPT = "disk.json"
CHECKED = (INDEX, KEYS, PARTS)  # files whose digests are in the receipt, besides the blobs
KEPT_COUNT = 16
KEPT_BYTES = 20 << 30
_PARTIAL = ".partial-"
_used: list[int] = []  # locks, held until the process ends


class KeptDisk(NamedTuple):
    """A packed disk in the cache."""

    folder: Path
    receipt: DiskReceipt


def is_kept(cache: Path, key: str) -> bool:
    """Return whether there is a disk with this key, damaged or not."""
    return (cache / "disks" / key / RECEIPT).exists()


def find_disk(cache: Path, key: str) -> KeptDisk | None:
    """Find the disk with this key; None if there is none. A damaged one is removed, and one line printed."""
    if not is_kept(cache, key):
        return None
    folder = cache / "disks" / key
    try:
        _use(folder)
        disk = check_disk(folder)
        os.utime(folder)  # when it was last used
        return disk
    except Damaged as err:
        made_again(err)
        _remove(folder)
        return None


@contextlib.contextmanager
def new_disk(cache: Path) -> Iterator[Path]:
    """Make an empty directory to pack a disk into. It is removed at the end, unless `keep_disk` renamed it."""
    disks = cache / "disks"
    disks.mkdir(parents=True, exist_ok=True)
    work = disks / f"{_PARTIAL}{os.urandom(8).hex()}"  # tempfile takes longer to load than this
    with _locked(disks):
        work.mkdir(mode=0o755)
        lock = _lock(work, fcntl.LOCK_EX)
    try:
        yield work
    finally:
        if work.exists():
            shutil.rmtree(work)
            os.close(lock)
        else:  # it is kept, and in use
            fcntl.flock(lock, fcntl.LOCK_SH)
            _used.append(lock)


def keep_disk(work: Path, receipt: DiskReceipt) -> KeptDisk:
    """Give the packed disk in `work` its receipt and its name. If another process was quicker, return its disk."""
    save(work / RECEIPT, receipt, durable=True)
    folder = work.with_name(receipt.key)
    try:
        work.rename(folder)
    except OSError:
        if (folder / RECEIPT).exists():
            _use(folder)
            return check_disk(folder)
        shutil.rmtree(folder)  # left by a removal that was killed
        work.rename(folder)
    fsync_dir(folder.parent)
    return KeptDisk(folder, receipt)


def files_of(work: Path) -> dict[str, str]:
    """Return the digests of a packed disk's files other than blobs, for its receipt."""
    names = (*CHECKED, TREE) if (work / TREE).exists() else CHECKED
    return {name: str(Digest.of((work / name).read_bytes())) for name in names}


def check_disk(folder: Path, *, blobs: bool = False) -> KeptDisk:
    """Check a kept disk against its receipt. Of its blobs only the sizes are checked, unless `blobs` is true: publishing reads them anyway.

    Raises:
        Damaged: a file is not what the receipt says, or the receipt belongs to another disk.
        RootdiskError: the receipt is missing.
    """
    receipt = load(folder / RECEIPT, DiskReceipt)
    if folder.resolve().name != receipt.key:
        raise Damaged(f"{folder} holds another disk", "remove it and start doit build again")
    for name in (*CHECKED, TREE) if receipt.verity else CHECKED:
        check_file(folder / name, receipt.files.get(name))
    for number, (digest, size) in enumerate(receipt.blobs):
        path = folder / blob_name(number)
        if blobs:
            check_file(path, digest)
        elif not path.exists() or path.stat().st_size != size:
            raise Damaged(f"{path} is damaged")
    return KeptDisk(folder, receipt)


def remove_damaged(cache: Path) -> None:
    """Read all files of every kept disk, and remove damaged disks: a blob may be linked into several."""
    for folder in sorted((cache / "disks").glob("[0-9a-f]*")):
        try:
            check_disk(folder, blobs=True)
        except RootdiskError as err:
            made_again(err)
            _remove(folder)


def tidy(cache: Path) -> None:
    """Remove the least recently used disks past KEPT_COUNT or KEPT_BYTES, old kernels, and what killed builds have left.

    A disk that a living process uses, or that a project's link cache/NAME/disk points to, stays.
    """
    from imagetool.guest import kernel  # a check of a disk does not need it

    kernel.tidy(cache / "kernels", time.time())
    disks = cache / "disks"
    if not disks.is_dir():
        return
    linked = {link.resolve() for link in cache.glob("*/disk")}
    with _locked(disks):
        for folder in disks.glob(f"{_PARTIAL}*"):
            _remove_unused(folder)
        folders = [(path.stat().st_mtime, path) for path in disks.glob("[0-9a-f]*")]
        seen: set[int] = set()
        count = size = 0
        for _, folder in sorted(folders, reverse=True):
            count, size = count + 1, size + _disk_usage(folder, seen)
            if (count > KEPT_COUNT or size > KEPT_BYTES) and folder.resolve() not in linked:
                _remove_unused(folder)


def _disk_usage(folder: Path, seen: set[int]) -> int:
    """Bytes that the files of `folder` take on the disk; a file with several names counts once."""
    files = [path.lstat() for path in folder.iterdir()]
    size = sum(info.st_blocks * 512 for info in files if info.st_ino not in seen)
    seen |= {info.st_ino for info in files}
    return size


def _remove_unused(folder: Path) -> None:
    with contextlib.suppress(OSError):  # in use, or gone
        lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            _remove(folder)
        finally:
            os.close(lock)


def _use(folder: Path) -> None:
    """Keep others from removing the disk until this process ends."""
    with contextlib.suppress(OSError):
        _used.append(_lock(folder, fcntl.LOCK_SH))


@contextlib.contextmanager
def _locked(disks: Path) -> Iterator[None]:
    """Hold the lock for making and removing directories of kept disks; held for moments only."""
    lock = _lock(disks, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, how: int) -> int:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove(folder: Path) -> None:
    """Remove a disk. For other processes it is gone at once: it is renamed first."""
    removed = folder.with_name(f"{_PARTIAL}{os.urandom(8).hex()}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
