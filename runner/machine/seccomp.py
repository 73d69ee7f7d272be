"""A seccomp filter for who serves a volume: files that would give others rights on the host are not made there.

A guest's root may give a file any mode, and make device files, as far as the server may: root's could leave programs on the host
that run as root. The filter looks at the mode in the registers (seccomp(2), linux/filter.h) and answers EPERM.
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
    """An architecture: AUDIT_ARCH_*, and by their numbers its calls that give a file a mode."""

    arch: int
    modes: dict[int, int]  # the mode's argument
    opens: dict[int, int]  # the argument of their flags, after which the mode comes if a file is made
    nodes: dict[int, int]  # which make a node of any kind; the mode's argument


_FCHMODAT2, _OPENAT2, _IO_URING_SETUP = 452, 437, 425  # the same everywhere
_MACHINES = {
    # creat, chmod, fchmod, fchmodat; open, openat; mknod, mknodat
    "x86_64": _Calls(0xC000003E, {85: 1, 90: 1, 91: 1, 268: 2, _FCHMODAT2: 2}, {2: 1, 257: 2}, {133: 1, 259: 2}),
    # fchmod, fchmodat; openat; mknodat
    "aarch64": _Calls(0xC00000B7, {52: 1, 53: 2, _FCHMODAT2: 2}, {56: 2}, {33: 2}),
}
Code = list[tuple[int, int, int, int]]  # code, jump if true, jump if false, constant
_REFUSE = (_RETURN, 0, 0, _ERRNO | errno.EPERM)


def program(machine: str, rights: Collection[str]) -> bytes:
    """The filter for what is allowed only with a right, dev or suid, as struct sock_filter's."""
    calls = _MACHINES.get(machine)
    if calls is None:
        raise RootdiskError(f"--volume is not served on {machine}", "on x86_64 and aarch64 it is")
    code: Code = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, calls.arch),
        (_RETURN, 0, 0, _KILL),  # another architecture's calls have other numbers
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
    # Their arguments are in memory, where a filter does not see them. Programs do without if the kernel has none.
    for number in (_OPENAT2, _IO_URING_SETUP):
        code += _call(number, [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)])
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def _call(number: int, then: Code) -> Code:
    """`then`, for one system call only."""
    return [(_LOAD, 0, 0, _NR_AT), (_EQUAL, 0, len(then), number), *then]


def _argument(number: int) -> tuple[int, int, int, int]:
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * number  # the lower half: both machines are little-endian


def install(filter_: bytes) -> None:
    """Make the filter this process's, and that of all it becomes. OSError."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    libc = ctypes.CDLL(None, use_errno=True)
    made = Program(len(filter_) // 8, filter_)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(made))):
        if libc.prctl(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {os.strerror(number)}")
