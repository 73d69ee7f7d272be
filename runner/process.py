"""The one place that starts programs: they end with the process that started them, hold no right they need not, and leave no core."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from runner.errors import RootdiskError

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_UIDS = range(61184, 65520)  # given out to services for as long as they run, by systemd too


class User(NamedTuple):
    """Whom a program becomes when we are root."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def find(name: str) -> str | None:
    """The path of a program in PATH. As shutil's which, which takes a while to load."""
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def forbid_core() -> None:
    """No core file of this process and those it starts: secrets would be in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def retitle(text: str) -> None:
    """What ps shows of this process from now on, in place of its command line, which may hold what is not for all."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # proc_pid_stat(5): arg_start and arg_end
    if start:  # else another user's process by now, or a kernel that does not tell
        ctypes.memmove(start, text.encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)


def unprivileged(locks: Path) -> User | None:
    """A user for a machine of ours when we are root: a number nobody has, and who may use KVM. None where there is no such.

    It is ours until this process ends: others that use the folder `locks` choose another.
    """
    if os.geteuid():
        return None
    spans = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    if not any(first <= _UIDS.start and first + count >= _UIDS.stop for first, _, count in spans):
        return None  # in a container that has few users
    # Not by pwd, which may ask the network's directories.
    lines = (line.split(b":") for line in Path("/etc/passwd").read_bytes().splitlines())
    taken = {fields[2] for fields in lines if len(fields) > 3}
    start = int.from_bytes(os.urandom(4), "big")
    for number in range(len(_UIDS)):
        uid = _UIDS[(start + number) % len(_UIDS)]
        if b"%d" % uid not in taken and _reserved(locks / f"uid-{uid}"):
            return User(uid, uid, _groups())
    raise RootdiskError(f"all {len(_UIDS)} users for machines are in use", "stop some sandboxes")


def _reserved(path: Path) -> bool:
    """Whether the lock `path` is this process's from now on."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    return True


def _groups() -> tuple[int, ...]:
    """Who may use KVM."""
    try:
        gid = os.stat("/dev/kvm").st_gid
    except OSError:
        return ()
    return (gid,) if gid else ()


def start(
    argv: Sequence[str],
    *,
    log: Path,
    fds: Sequence[int] = (),
    user: User | None = None,
    file_max_bytes: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Run `argv` in a session of its own with `fds` inherited; what it says goes to the new file `log`.

    It is killed when the calling process ends, however that ends. `prepare` runs in it, still with all rights.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def become() -> None:
        if prepare is not None:
            prepare()
        forbid_core()
        if file_max_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_max_bytes, file_max_bytes))
        if user is not None:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
        if os.getppid() != parent:
            os._exit(1)

    with open(log, "ab") as errors:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=fds,
            start_new_session=True,  # Ctrl-C is ours to pass on
            preexec_fn=become,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},  # no variable of the user's
        )
