"""The one place that starts programs. `run` waits for a program's answer; `start` starts one that ends with this process.

A program gets the descriptors that it is given and no others, whatever this process has inherited. `detach` makes a
process of its own of a fork: it keeps nothing of its caller's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from rootdisk.durable import open_file
from rootdisk.errors import Busy, RootdiskError

PROBE_S = 30.0  # to say a version or the like
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_UIDS = range(61184, 65520)  # given out to services for as long as they run, by systemd too


class Done(NamedTuple):
    """How a program has ended, and what it wrote."""

    status: int  # negative: the signal that ended it
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")

    @property
    def complaint(self) -> str:
        """Its standard error."""
        return self.err.decode("utf-8", "replace")


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
    fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # proc_pid_stat(5): arg_start and arg_end
    if start:  # else another user's process by now, or a kernel that does not tell
        ctypes.memmove(start, text.encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)


@contextlib.contextmanager
def unprivileged(locks: Path) -> Iterator[User | None]:
    """A user for a machine of ours when we are root: a number nobody has, and who may use KVM. None where there is no such.

    As long as it is held, others that use the folder `locks` choose another.
    """
    if os.geteuid() or not _has_users():
        yield None
        return
    from rootdisk.system.locks import held, remove_idle

    for left in locks.glob("uid-*"):  # by those that were killed
        remove_idle(left)
    # Not by pwd, which may ask the network's directories.
    lines = (line.split(b":") for line in Path("/etc/passwd").read_bytes().splitlines())
    taken = {fields[2] for fields in lines if len(fields) > 3}
    start = int.from_bytes(os.urandom(4), "big")
    with contextlib.ExitStack() as stack:
        for number in range(len(_UIDS)):
            uid = _UIDS[(start + number) % len(_UIDS)]
            if b"%d" % uid in taken:
                continue
            try:
                stack.enter_context(held(locks / f"uid-{uid}", timeout_s=0))
            except Busy:
                continue
            yield User(uid, uid, _groups())
            return
    raise RootdiskError(f"all {len(_UIDS)} users for machines are in use", "stop some sandboxes")


def _has_users() -> bool:
    """Whether we may become any of them: in some containers there are few users."""
    lines = Path("/proc/self/uid_map").read_text("utf-8", "replace").splitlines()
    spans = [tuple(map(int, line.split())) for line in lines]
    return any(first <= _UIDS.start and first + count >= _UIDS.stop for first, _, count in spans)


def _groups() -> tuple[int, ...]:
    """Who may use KVM."""
    try:
        gid = os.stat("/dev/kvm").st_gid
    except OSError:
        return ()
    return (gid,) if gid else ()


def run(
    argv: Sequence[str | Path],
    *,
    given: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Done:
    """Run `argv` to its end, with `given` as its input: its exit status and all that it writes.

    It is killed after `timeout_s` seconds (TimeoutError). OSError if it cannot be started.
    """
    process = _spawn(
        argv,
        stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=env,
    )
    with process:
        try:
            out, err = process.communicate(given, timeout_s)
        except subprocess.TimeoutExpired as late:
            process.kill()
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout_s:g} s", str(argv[0])) from late
        except BaseException:
            process.kill()
            raise
    return Done(process.returncode, out, err)


def start(
    argv: Sequence[str],
    *,
    fds: Sequence[int] = (),
    user: User | None = None,
    file_max_bytes: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Run `argv` in a session of its own with `fds` inherited; what it says is to be read from its stdout, which does not block.

    A file would have no bound: a guest can make QEMU complain without end. It is killed when the calling process ends, however that ends. `prepare` runs in it, still with all rights.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def become() -> None:
        hear_all()
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

    process = _spawn(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        fds=fds,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},  # no variable of the user's
        become=become,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return process


def _spawn(
    argv: Sequence[str | Path],
    *,
    stdin: int,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    fds: Sequence[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    become: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Every program that we start. With `become`, which runs in it, it has a session of its own: Ctrl-C is ours to pass on.

    Without, it stays in ours, so that what a terminal or `nohup` does to us holds for it too.
    """
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        close_fds=True,
        pass_fds=fds,
        cwd=cwd,
        env=env,
        restore_signals=True,  # SIGPIPE and SIGXFSZ, which Python ignores
        start_new_session=become is not None,
        preexec_fn=become,
    )


def hear_all() -> None:
    """Let every signal do what it does by default, and block none."""
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def heard(*wanted: signal.Signals) -> tuple[signal.Signals, ...]:
    """Those of `wanted` that our caller does not ignore, as nohup ignores SIGHUP and `&` in a script SIGINT."""
    return tuple(one for one in wanted if signal.getsignal(one) is not signal.SIG_IGN)


def detach(keep: Collection[int], log: Path | None) -> None:
    """Make this process, a fork, independent of its caller: session, directory, descriptors.

    Open stay 0 to 2 and `keep`. What it writes to standard error goes to the file `log`; None: to where it did.
    """
    os.setsid()
    # What is looked for in relative places is looked for where the caller was.
    os.environ["PATH"] = os.pathsep.join(map(_absolute, os.get_exec_path()))
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if log is not None:
        try:
            fd = open_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError:  # something else has its name, or the disk is full: it runs without
            fd = null
        os.dup2(fd, 2)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(fd)


def _absolute(folder: str) -> str:
    try:
        return os.path.abspath(folder)
    except FileNotFoundError:  # the working directory is gone
        return "/"
