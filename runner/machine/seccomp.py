"""Seccomp filter for the server of a volume: it cannot create set-user-ID files, set-group-ID files and devices.

Root in a guest may set any mode and create device files, within the rights of the server. Without the filter a server that
runs as root could leave set-user-ID programs on the host. The filter checks the mode in the registers (seccomp(2),
linux/filter.h) and returns EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Collection
from typing import NamedTuple

from rootdisk.errors import RootdiskError

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
_LOAD, _EQUAL, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x45, 0x54, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, …
_NR_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data
_RIGHTS_BITS = stat.S_ISUID | stat.S_ISGID
_CREATES = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)


class _Calls(NamedTuple):
    """System calls of an architecture (AUDIT_ARCH_*) that take a file mode, by number."""

    arch: int
    modes: dict[int, int]  # index of the mode argument
    opens: dict[int, int]  # index of the flags argument; the mode follows if a file is created
    nodes: dict[int, int]  # mknod and the like; index of the mode argument


_FCHMODAT2, _OPENAT2, _IO_URING_SETUP = 452, 437, 425  # the same on all architectures
_MACHINES = {
    # creat, chmod, fchmod, fchmodat; open, openat; mknod, mknodat
    "x86_64": _Calls(0xC000003E, {85: 1, 90: 1, 91: 1, 268: 2, _FCHMODAT2: 2}, {2: 1, 257: 2}, {133: 1, 259: 2}),
    # fchmod, fchmodat; openat; mknodat
    "aarch64": _Calls(0xC00000B7, {52: 1, 53: 2, _FCHMODAT2: 2}, {56: 2}, {33: 2}),
}
Code = list[tuple[int, int, int, int]]  # code, jump if true, jump if false, constant
_REFUSE = (_RETURN, 0, 0, _ERRNO | errno.EPERM)


def program(machine: str, rights: Collection[str]) -> bytes:
    """Return the filter as an array of struct sock_filter. `rights` (dev, suid) are not filtered.

    Raises:
        RootdiskError: The architecture `machine` is not supported.
    """
    calls = _MACHINES.get(machine)
    if calls is None:
        raise RootdiskError(f"--volume is not supported on {machine}", "use x86_64 or aarch64")
    code: Code = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, calls.arch),
        (_RETURN, 0, 0, _KILL),  # calls of another architecture have other numbers
    ]
    if "suid" not in rights:
        for number, argument in (calls.modes | calls.nodes).items():
            code += _call(number, [_argument(argument), (_ANY_BIT, 0, 1, _RIGHTS_BITS), _REFUSE])
        for number, flags in calls.opens.items():
            mode: Code = [_argument(flags + 1), (_ANY_BIT, 0, 1, _RIGHTS_BITS), _REFUSE]
            code += _call(number, [_argument(flags), (_ANY_BIT, 0, len(mode), _CREATES), *mode])
    if "dev" not in rights:
        for number, argument in calls.nodes.items():
            for kind in (stat.S_IFCHR, stat.S_IFBLK):
                code += _call(number, [_argument(argument), (_AND, 0, 0, 0o170000), (_EQUAL, 0, 1, kind), _REFUSE])
    # Their arguments are in memory, which a filter cannot read. Programs have fallbacks for kernels without these calls.
    for number in (_OPENAT2, _IO_URING_SETUP):
        code += _call(number, [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)])
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _call(number: int, then: Code) -> Code:
    """Return code that runs `then` for one system call only."""
    return [(_LOAD, 0, 0, _NR_AT), (_EQUAL, 0, len(then), number), *then]


def _argument(number: int) -> tuple[int, int, int, int]:
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * number  # the lower half: both architectures are little-endian


def install(filter_: bytes) -> None:
    """Install the filter in this process. Programs that it executes inherit it.

    Raises:
        OSError: The kernel has refused it.
    """

    class Program(ctypes.Structure):
        """struct sock_fprog, linux/filter.h."""

        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    libc = ctypes.CDLL(None, use_errno=True)
    filter_program = Program(len(filter_) // 8, filter_)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_program)),
    ):
        if libc.prctl(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {os.strerror(number)}")
