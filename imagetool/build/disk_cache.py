"""Packed disks by derivation key, under `cache`/disks/KEY/: what has been made once is not made again.

Beside the packed disk (imagetool/packing/reuse.py) lies disk.json, its receipt: all that an artifact's config says of it.
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
from imagetool.packing.reuse import INDEX, KEYS, PARTS, blob_name
from imagetool.receipts import Damaged, check_file, load, made_again, save
from rootdisk.durable import fsync_dir
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest

RECEIPT = "disk.json"
CHECKED = (INDEX, KEYS, PARTS)  # whose digests are in the receipt beside those of the blobs
KEPT_COUNT = 16
KEPT_BYTES = 20 << 30
_PARTIAL = ".partial-"
_used: list[int] = []  # locks, held until the process ends


class KeptDisk(NamedTuple):
    """A packed disk in the cache."""

    folder: Path
    receipt: DiskReceipt


def is_kept(cache: Path, key: str) -> bool:
    """Whether there is a disk of that key, damaged or not."""
    return (cache / "disks" / key / RECEIPT).exists()


def find_disk(cache: Path, key: str) -> KeptDisk | None:
    """Find the disk of that key; None if there is none. A damaged one is removed, with one line."""
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
    """An empty directory for a disk to be packed into. At the end it is gone, unless `keep_disk` has taken it."""
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
    """Give the packed disk in `work` its receipt and its name. If another process was quicker, its disk is the one."""
    save(work / RECEIPT, receipt, durable=True)
    folder = work.with_name(receipt.key)
    try:
        work.rename(folder)
    except OSError:
        if (folder / RECEIPT).exists():
            _use(folder)
            return check_disk(folder)
        shutil.rmtree(folder)  # the rest of a removal that was killed
        work.rename(folder)
    fsync_dir(folder.parent)
    return KeptDisk(folder, receipt)


def files_of(work: Path) -> dict[str, str]:
    """Return the digests of a packed disk's files other than blobs, for its receipt."""
    return {name: str(Digest.of((work / name).read_bytes())) for name in CHECKED}


def check_disk(folder: Path, *, blobs: bool = False) -> KeptDisk:
    """Check a kept disk against its receipt. Of its blobs only the sizes, unless `blobs`: publishing reads them anyway.

    Raises:
        Damaged: a file is not what the receipt says, or the receipt is another disk's.
        RootdiskError: there is no receipt.
    """
    receipt = load(folder / RECEIPT, DiskReceipt)
    if folder.resolve().name != receipt.key:
        raise Damaged(f"{folder} holds another disk", "remove it and start doit build again")
    for name in CHECKED:
        check_file(folder / name, receipt.files.get(name))
    for number, (digest, size) in enumerate(receipt.blobs):
        path = folder / blob_name(number)
        if blobs:
            check_file(path, digest)
        elif not path.exists() or path.stat().st_size != size:
            raise Damaged(f"{path} is damaged")
    return KeptDisk(folder, receipt)


def remove_damaged(cache: Path) -> None:
    """Read every kept disk whole, and remove what is damaged: a blob may be linked into several."""
    for folder in sorted((cache / "disks").glob("[0-9a-f]*")):
        try:
            check_disk(folder, blobs=True)
        except RootdiskError as err:
            made_again(err)
            _remove(folder)


def tidy(cache: Path) -> None:
    """Remove the least recently used disks past KEPT_COUNT or KEPT_BYTES, old kernels, and what dead builds have left.

    A disk that a living process uses, or that a project's cache/NAME/disk leads to, stays.
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
            count, size = count + 1, size + _room(folder, seen)
            if (count > KEPT_COUNT or size > KEPT_BYTES) and folder.resolve() not in linked:
                _remove_unused(folder)


def _room(folder: Path, seen: set[int]) -> int:
    """Bytes that the files of `folder` take on the disk; a file of several names counts once."""
    found = [path.lstat() for path in folder.iterdir()]
    size = sum(info.st_blocks * 512 for info in found if info.st_ino not in seen)
    seen |= {info.st_ino for info in found}
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
    """Hold the lock under which directories of kept disks are made and removed, for moments only."""
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
    """At once, as far as others see."""
    gone = folder.with_name(f"{_PARTIAL}{os.urandom(8).hex()}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
