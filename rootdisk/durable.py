"""Files that survive a crash: atomic writes, careful reads, sparse copies.

A name appears only by rename of a finished, fsynced temporary file beside it, so whoever sees the name sees all of the
content.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_FICLONE = 0x40049409  # linux/fs.h
_JSON_MAX_BYTES = 1 << 20
_COPY_BYTES = 1 << 30  # asked for in one copy_file_range or sendfile call


def fsync_dir(directory: Path) -> None:
    """Make the names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, data: bytes | Iterable[bytes], mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace `path` by `data` and `mode`, at once; and so that a power cut keeps it, if `durable`."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")  # tempfile takes longer to load than to write
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        os.rename(temporary, path)
    except BaseException as err:
        os.unlink(temporary)
        if isinstance(err, OSError) and err.filename is None:
            err.filename = str(path)  # of a full disk, say
        raise
    if durable:
        fsync_dir(path.parent)


def write_at(fd: int, data: bytes | bytearray, offset: int) -> None:
    """All of `data`, as pwrite(2) may write less."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_json(path: Path, value: object, mode: int = 0o644, *, durable: bool = True) -> None:
    """`value` as indented JSON with sorted keys, as `atomic_write` does."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", mode, durable=durable)


def keep_others_out() -> None:
    """Let no other user of this machine write to what this process makes, under any umask: it may be published."""
    os.umask(os.umask(0o022) | 0o002)


def open_file(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a file of the store; OSError if `path` is a link or anything else than a regular file, which is not waited for."""
    try:
        # O_NONBLOCK: a FIFO would be waited for.
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as err:
        if err.errno == errno.ELOOP:
            err.strerror = "is a symbolic link"
        raise
    found = os.fstat(fd).st_mode
    if not stat.S_ISREG(found):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a file", str(path))
    if flags & os.O_CREAT and mode & ~found & stat.S_IRWXU:
        os.fchmod(fd, mode)  # a umask that takes it from its owner too
    os.set_blocking(fd, True)
    return fd


def opener(path: str, flags: int) -> int:
    """`open_file` for open()."""
    return open_file(Path(path), flags)


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a whole file of the store, as `open_file`; ValueError if it is larger than `max_bytes`."""
    with open(open_file(path), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"is larger than {max_bytes} bytes")
    return data


def read_json(path: Path, max_bytes: int = _JSON_MAX_BYTES) -> Any:
    """The value of a JSON file of the store; OSError, or ValueError whatever else is wrong with it."""
    return parse_json(read_file(path, max_bytes))


def parse_json(raw: bytes) -> Any:
    """Parse JSON that somebody else may have written. ValueError, whatever is wrong with it."""

    def refuse(constant: str) -> None:
        raise ValueError(f"holds {constant}, which is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("has a key twice")
        return value

    if not raw.strip():
        raise ValueError("is empty")
    try:
        return json.loads(raw, parse_constant=refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as err:
        raise ValueError(f"is cut off or damaged: {err}") from err
    except UnicodeDecodeError as err:
        raise ValueError(f"is damaged: {err.reason}") from err
    except RecursionError as err:
        raise ValueError("is nested too deeply") from err


@contextlib.contextmanager
def socket_address(folder: Path, name: str) -> Iterator[str]:
    """The address of the UNIX socket `name` in `folder`, whose own path may be too long for one (unix(7): 107 bytes)."""
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)


def data_runs(fd: int) -> Iterator[tuple[int, int]]:
    """The (start, end) byte runs of an open file that are not holes, by SEEK_DATA and SEEK_HOLE."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # lseek(2): no data after `end`
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def copy_sparse(source: Path, target: Path) -> None:
    """Copy `source` to the new file `target`, holes as holes; within the kernel, shared where the file system can."""
    with open(source, "rb", buffering=0, opener=opener) as src, open(target, "xb", buffering=0) as dst:
        os.ftruncate(dst.fileno(), os.fstat(src.fileno()).st_size)
        for start, end in list(data_runs(src.fileno())):
            while start < end:
                start += _copy_run(src.fileno(), dst.fileno(), start, min(end - start, _COPY_BYTES))


def _copy_run(src: int, dst: int, offset: int, count: int) -> int:
    """Copy up to `count` bytes at `offset`; how many there were."""
    try:
        copied = os.copy_file_range(src, dst, count, offset, offset)
    except OSError as err:
        # Between file systems of different types; or a file system or kernel that has no such call.
        if err.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.lseek(dst, offset, os.SEEK_SET)
        copied = os.sendfile(dst, src, offset, count)
    if not copied:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return copied


def reflink(source: Path, target: Path) -> bool:
    """Make the new file `target` share all blocks of `source`; False where the file system cannot."""
    with open(source, "rb", buffering=0, opener=opener) as src, open(target, "xb", buffering=0) as dst:
        try:
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
        except OSError as err:
            os.unlink(target)
            if err.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.EINVAL):
                return False
            raise
    return True
