"""Files that survive a crash: atomic writes, careful reads, sparse copies.

A file is written under a temporary name in the same directory, synced, and then renamed. So any process that sees the
final name sees the complete content.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rootdisk.errors import BadInput
from rootdisk.text import printable

_FICLONE = 0x40049409  # linux/fs.h
_JSON_MAX_BYTES = 1 << 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_COPY_BYTES = 1 << 30  # asked for in one copy_file_range or sendfile call


def advice(err: OSError, size: int, where: Path) -> str:
    """Return a hint for a failed write of a file of `size` bytes in the directory `where`, or ""."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, for example with runner prune"
    if err.errno == errno.EFBIG:
        return (
            f"the file system of {where}, or ulimit -f, allows no file of {size} bytes: "
            "use another (XFS and Btrfs allow 16 TiB), or a smaller disk"
        )
    return ""


def fsync_dir(directory: Path) -> None:
    """Sync `directory`, so that new and renamed files in it survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(
    path: Path, data: bytes | bytearray | Iterable[bytes], mode: int = 0o644, *, durable: bool = True
) -> None:
    """Replace the file `path` atomically with `data` (bytes, or pieces of bytes), with `mode`. The umask takes rights from others only.

    If `durable`, file and name are synced before this returns, so they survive a power cut. If anything fails, the old
    file is unchanged and the temporary file is removed.

    Raises:
        OSError: The file cannot be written; `filename` is always set.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")  # importing tempfile takes longer than the write
    try:  # from the start: a signal may end this program at any moment
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.writelines([data] if isinstance(data, bytes | bytearray) else data)
            file.flush()
            os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | mode & stat.S_IRWXU)
            if durable:
                os.fsync(fd)
        os.rename(temporary, path)
    except BaseException as err:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(err, OSError):  # for example, if the disk is full
            err.filename, err.filename2 = str(path), None  # the temporary file is nobody's concern
        raise
    if durable:
        fsync_dir(path.parent)


@contextlib.contextmanager
def named_place(fd: int) -> Iterator[None]:
    """Errors of writing to `fd` name its directory, which says what disk is full: the file may have a temporary name."""
    try:
        yield
    except OSError as err:
        if err.filename is None:
            with contextlib.suppress(OSError):
                err.filename = os.path.dirname(os.readlink(f"/proc/self/fd/{fd}"))
        raise


def check_output(path: Path) -> None:
    """Check that a file can be written or replaced at `path`, which a user has named, before the work that fills it.

    Raises:
        BadInput: A directory or device is there, or the directory is missing.
    """
    name = printable(path)
    if path.is_dir():
        raise BadInput(f"{name} is a directory", "name a file")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{printable(path.absolute().parent)} is not a directory", "create it first")
    if path.exists() and not path.is_file():
        raise BadInput(f"{name} is a device, pipe or socket", "write to a file, and copy that with dd or cat")


def write_at(fd: int, data: bytes | bytearray, offset: int) -> None:
    """Write all of `data` at byte `offset`. A single pwrite(2) may write less."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_json(path: Path, value: object, mode: int = 0o644, *, durable: bool = True) -> None:
    """Write `value` as indented JSON with sorted keys. See `atomic_write`."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", mode, durable=durable)


def keep_others_out() -> None:
    """Change the umask so that others cannot write to files that this process creates: they may be published."""
    os.umask(os.umask(0o022) | 0o002)


def open_file(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a regular file and return its descriptor. Links are not followed, and FIFOs and devices do not block.

    Raises:
        OSError: `path` cannot be opened, or is a symbolic link or not a regular file.
    """
    try:
        # O_NONBLOCK: opening a FIFO would block.
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as err:
        if err.errno == errno.ELOOP:
            err.strerror = "is a symbolic link"
        raise
    actual_mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(actual_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a file", str(path))
    if flags & os.O_CREAT and mode & ~actual_mode & stat.S_IRWXU:
        os.fchmod(fd, mode)  # the umask took rights from the owner
    os.set_blocking(fd, True)
    return fd


def open_config(path: Path, *, may_be_pipe: bool) -> int:
    """Open a configuration file, which may be a link; `may_be_pipe` if the user has named it, as `<(…)` of a shell.

    Raises:
        OSError: As for `open_file`.
    """
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if may_be_pipe else open_file(Path(os.path.realpath(path)))


def is_named(fd: int, path: Path) -> bool:
    """Return whether `path` is a name of the file open at `fd`. Links are not followed."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def opener(path: str, flags: int) -> int:
    """Open a file for the builtin `open`, with the checks of `open_file`."""
    return open_file(Path(path), flags)


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of the regular file `path`.

    Raises:
        OSError: As for `open_file`.
        ValueError: The file is larger than `max_bytes`.
    """
    with open(open_file(path), "rb") as file:
        size = min(os.fstat(file.fileno()).st_size, max_bytes)
        data = file.read(size + 1)  # a buffer of the whole limit could be too much for this process
        if len(data) > size:  # it has grown, or has no size, as in /proc
            data += file.read(max_bytes + 1 - len(data))
    if len(data) > max_bytes:
        raise ValueError(f"is larger than {max_bytes} bytes")
    return data


def read_json(path: Path, max_bytes: int = _JSON_MAX_BYTES) -> Any:
    """Return the value of the JSON file `path`.

    Raises:
        OSError: As for `open_file`.
        ValueError: The file is too large or is not JSON; the message continues a sentence that names the file.
    """
    return parse_json(read_file(path, max_bytes))


def parse_json(raw: bytes) -> Any:
    """Parse untrusted JSON. Duplicate keys, NaN, Infinity and strings that no file name could be are refused.

    Raises:
        ValueError: `raw` is not such JSON; the message continues a sentence that names the file.
    """

    def refuse(constant: str) -> None:
        """Refuse NaN and Infinity, which Python would read."""
        raise ValueError(f"holds {constant}, which is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object's members; refuse a key that stands twice."""
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("has a key twice")
        return value

    if not raw.strip():
        raise ValueError("is empty")
    try:
        value = json.loads(raw, parse_constant=refuse, object_pairs_hook=unique)
        if _SURROGATE.search(raw):  # a path that is not UTF-8 has some; others cannot be encoded later
            os.fsencode(json.dumps(value, ensure_ascii=False))
        return value
    except json.JSONDecodeError as err:
        raise ValueError(f"is cut off or damaged: {err}") from err
    except UnicodeEncodeError as err:
        raise ValueError("has half of a surrogate pair") from err
    except UnicodeDecodeError as err:
        raise ValueError(f"is damaged: {err.reason}") from err
    except RecursionError as err:
        raise ValueError("is nested too deeply") from err


@contextlib.contextmanager
def socket_address(folder: Path, name: str) -> Iterator[str]:
    """Yield an address for the UNIX socket `name` in `folder`. The real path may be too long (unix(7): 107 bytes)."""
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)


def data_runs(fd: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) byte ranges of an open file that are not holes, from SEEK_DATA and SEEK_HOLE."""
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
    """Copy `source` to the new file `target` inside the kernel. Holes stay holes; blocks are shared if possible."""
    with open(source, "rb", buffering=0, opener=opener) as src, open(target, "xb", buffering=0) as dst:
        os.ftruncate(dst.fileno(), os.fstat(src.fileno()).st_size)
        copy_data(src.fileno(), dst.fileno())


def copy_data(source: int, target: int) -> None:
    """Copy what is not a hole to the same place in another open file, inside the kernel; as `copy_sparse`."""
    for start, end in list(data_runs(source)):
        while start < end:
            start += _copy_run(source, target, start, min(end - start, _COPY_BYTES))


def _copy_run(src: int, dst: int, offset: int, count: int) -> int:
    """Copy up to `count` bytes at `offset` and return how many were copied."""
    try:
        copied = os.copy_file_range(src, dst, count, offset, offset)
    except OSError as err:
        # Different file systems, or the call is not supported.
        if err.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.lseek(dst, offset, os.SEEK_SET)
        copied = os.sendfile(dst, src, offset, count)
    if not copied:
        raise OSError(errno.EIO, "the file became shorter during the copy")
    return copied


def reflink(source: Path, target: Path) -> bool:
    """Create `target` with the blocks of `source` shared. Return False if the file system does not support it."""
    with open(source, "rb", buffering=0, opener=opener) as src, open(target, "xb", buffering=0) as dst:
        try:
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
        except OSError as err:
            os.unlink(target)
            if err.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.EINVAL):
                return False
            raise
    return True
