"""Opening what lies below a directory, without following a link on the way."""

from __future__ import annotations

import ctypes
import errno
import os

_SYS_OPENAT2 = 437  # the same number on every architecture, as of all system calls since Linux 5.1
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x04, 0x08  # linux/openat2.h
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    """struct open_how, linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Beneath:
    """The directories below one. The one that was asked for last stays open."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._name: bytes | None = None
        self._fd = -1

    def __enter__(self) -> Beneath:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def folder(self, name: bytes) -> int:
        """A descriptor of the directory `name`, until the next call; OSError as of `open_directory`."""
        if name != self._name:
            self.forget()
            self._fd = open_directory(self._base, name)
            self._name = name
        return self._fd

    def forget(self) -> None:
        """Close the directory that is kept open."""
        if self._name is not None:
            os.close(self._fd)
            self._name = None


def open_directory(base: int, name: bytes) -> int:
    """Open the directory `name` below the directory `base`; the caller closes it. `name` is a checked one, or empty for `base`.

    OSError if any part of it is missing, is a link, or is not a directory.
    """
    if not name:
        return os.open(b".", _DIRECTORY, dir_fd=base)
    if b"\0" in name or b".." in name.split(b"/"):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    try:
        return _openat2(base, name)
    except OSError as err:
        # ENOSYS before Linux 5.6, EPERM from a system call filter that does not know it.
        if err.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return open_in_steps(base, name)


def _openat2(base: int, name: bytes) -> int:
    how = _How(flags=_DIRECTORY, resolve=_RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    while True:
        fd = _libc.syscall(_SYS_OPENAT2, base, name, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code), name)


def open_in_steps(base: int, name: bytes) -> int:
    """Do what `open_directory` does, one component at a time, for kernels without openat2."""
    fd = os.open(b".", _DIRECTORY, dir_fd=base)
    for part in name.split(b"/"):
        try:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd
