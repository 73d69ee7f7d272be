"""Export to a directory: disk, kernel, initramfs, command line, and files for QEMU, Firecracker and Nomad.

The directory gets its name when all is in it and synced. With `replace` it changes places with the old one in one step.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from imagetool.export.boot import Boot, firecracker, qemu_script
from imagetool.export.chunks import data_chunks
from imagetool.export.nomad import is_possible, nomad_job
from imagetool.export.qcow2 import write_qcow2
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.durable import fsync_dir, write_at
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest
from rootdisk.text import printable

DiskFormat = Literal["raw", "qcow2"]
FILES = frozenset(
    {"disk.raw", "disk.qcow2", "vmlinuz", "vmlinux", "initramfs", "cmdline", "qemu.sh", "firecracker.json", "nomad.hcl"}
)
_PAGE_BYTES = 4096
_NO_PAGE = bytes(_PAGE_BYTES)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h


def export_directory(artifact: PublishedArtifact, path: Path, disk_format: DiskFormat, *, replace: bool) -> None:
    """Write what boots `artifact` to the new directory `path`; with `replace`, in place of an older export.

    Raises:
        BadInput: `path` exists and is not to be replaced, or the artifact cannot boot without the runner.
        DigestMismatch: The artifact is damaged.
    """
    check_directory(path, replace=replace)
    boot = Boot.of(artifact)
    with _new_directory(path) as work:
        disk = f"disk.{disk_format}"
        with (work / disk).open("xb", buffering=1 << 20) as file:
            if disk_format == "qcow2":
                write_qcow2(file, artifact.config.disk_size, data_chunks(artifact))
            else:
                _write_raw(file.fileno(), artifact)
            file.flush()
            os.fsync(file.fileno())
        files = _boot_files(boot, disk, disk_format)
        if is_possible(boot, disk):
            with (work / disk).open("rb") as stream:
                of_disk = Digest("sha256", hashlib.file_digest(stream, "sha256").hexdigest())
            digests = {disk: of_disk, **{name: Digest.of(files[name]) for name in ("vmlinuz", "initramfs")}}
            files["nomad.hcl"] = nomad_job(boot, digests).encode()
        for name, data in files.items():
            with (work / name).open("xb") as file:
                file.write(data)
                os.fchmod(file.fileno(), 0o755 if name == "qemu.sh" else 0o644)
                file.flush()
                os.fsync(file.fileno())


def check_directory(path: Path, *, replace: bool) -> None:
    """Check that an export may be written to `path`. Only a directory that has nothing but an export's files is replaced.

    Raises:
        BadInput: It may not.
    """
    name = printable(path)
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{printable(path.absolute().parent)} is not a directory", "create it first")
    if not os.path.lexists(path):
        return
    if not replace:
        raise BadInput(f"dir:{name} exists already", "choose another directory, or replace this export with --force")
    if path.is_symlink() or not path.is_dir():
        raise BadInput(f"dir:{name} is not a directory", "choose another name")
    if others := sorted(set(os.listdir(path)) - FILES):
        raise BadInput(
            f"dir:{name} has other files than an export: {printable(others[0], 80)}", "choose another directory"
        )


def _boot_files(boot: Boot, disk: str, disk_format: DiskFormat) -> dict[str, bytes]:
    """Return the small files of an export by name."""
    files = {"vmlinuz": boot.kernel, "initramfs": boot.initramfs}
    files |= {"vmlinux": boot.vmlinux} if boot.vmlinux is not None else {}
    files["cmdline"] = boot.kernel_args.encode() + b"\n"
    files["qemu.sh"] = qemu_script(boot, disk, disk_format).encode()
    kernel = "vmlinuz" if boot.platform.architecture == "arm64" else "vmlinux"  # Firecracker boots no bzImage
    if disk_format == "raw" and kernel in files:
        files["firecracker.json"] = firecracker(boot, kernel).encode()
    return files


def _write_raw(fd: int, artifact: PublishedArtifact) -> None:
    """Write the disk as a sparse file."""
    os.ftruncate(fd, artifact.config.disk_size)
    for offset, data in data_chunks(artifact):
        start = 0
        while start < len(data):
            end = start
            while end < len(data) and data[end : end + _PAGE_BYTES] != _NO_PAGE[: len(data) - end]:
                end += _PAGE_BYTES
            if end > start:
                write_at(fd, data[start:end], offset + start)
            start = end + _PAGE_BYTES


@contextmanager
def _new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`, which gets that name at the end. It is removed if anything fails."""
    work = path.absolute().with_name(f".{path.absolute().name}.{os.urandom(8).hex()}")
    work.mkdir(mode=0o755)
    try:
        yield work
        fsync_dir(work)
        _take_name(work, path.absolute())
        fsync_dir(work.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # after an exchange it is the old export


def _take_name(work: Path, path: Path) -> None:
    """Give the directory `work` the name `path`. If something is there, exchange the two."""
    try:
        if not os.path.lexists(path):
            os.rename(work, path)
            return
    except OSError as err:
        if err.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise BadInput(f"dir:{printable(path)} exists by now", "choose another directory") from err
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(work), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(path))
