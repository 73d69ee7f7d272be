"""Start programs; no other module does. `run` waits for the result; `start` starts one that ends with this process.

A program inherits only the descriptors that are passed explicitly. `detach` makes a forked process independent of its
caller.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from rootdisk.durable import open_file
from rootdisk.errors import Busy, RootdiskError
from rootdisk.system.output import exchange

PRIVATE = ("ROOTDISK_SIGN_PASSPHRASE",)  # variables of ours with secrets, which no program inherits
PROBE_S = 30.0  # for a quick question, such as --version or --help
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2  # linux/prctl.h
_CAP_NET_BIND_SERVICE, _CAPABILITY_VERSION_3 = 10, 0x20080522  # linux/capability.h
_UIDS = range(61184, 65520)  # the range that systemd uses for dynamic users


OUTPUT_MAX_BYTES = 64 << 20  # of a program that is run to its end


class Done(NamedTuple):
    """The exit status and output of a program."""

    status: int  # negative: the signal that ended it
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Standard output, as text."""
        return self.out.decode("utf-8", "replace")

    @property
    def complaint(self) -> str:
        """Standard error, as text."""
        return self.err.decode("utf-8", "replace")


class User(NamedTuple):
    """The user that a program started by root becomes."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def find(name: str) -> str | None:
    """Return the path of a program in PATH, or None. shutil.which does the same but is slow to import."""
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def protect_secrets() -> None:
    """Keep what this process knows from others: no core files, also of its children, and no environment in /proc."""
    _forbid_core()
    hide_environment()


def _forbid_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide_environment() -> None:
    """Clear what /proc and ps show of this process's environment: it may contain secrets. Programs and libraries still find it."""
    for name, value in os.environb.items():
        os.putenv(name, value)  # the C library copies it: nothing refers to the original any more
    _overwrite("env_start", b"")


def retitle(text: str) -> None:
    """Replace the command line that ps shows for this process: the original may contain secrets."""
    _overwrite("arg_start", text.encode())


_FIELDS = {"arg_start": 45, "env_start": 47}  # proc_pid_stat(5), after the name; the end is the next one


def _overwrite(field: str, text: bytes) -> None:
    """Fill a part of this process's memory that the kernel shows to others with `text` and zeros."""
    fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    start, end = map(int, fields[_FIELDS[field] :][:2])
    if start:  # 0 if the process has changed its user, or if the kernel hides the address
        ctypes.memmove(start, text[: end - start - 1].ljust(end - start, b"\0"), end - start)


@contextlib.contextmanager
def unprivileged(locks: Path) -> Iterator[User | None]:
    """Yield an unused user ID for a virtual machine, with access to KVM. Yield None if we are not root.

    A lock in the directory `locks` keeps other processes from choosing the same ID until the block ends. In containers with
    few user IDs, None is yielded too.

    Raises:
        RootdiskError: All IDs are in use.
    """
    if os.geteuid() or not _has_users():
        yield None
        return
    from rootdisk.system.locks import held, remove_idle

    for stale in locks.glob("uid-*"):  # left by killed processes
        remove_idle(stale)
    # Read the file: the module pwd may ask a directory service over the network.
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
    """Return whether this user namespace contains the range _UIDS: some containers have few IDs."""
    lines = Path("/proc/self/uid_map").read_text("utf-8", "replace").splitlines()
    spans = [tuple(map(int, line.split())) for line in lines]
    return any(first <= _UIDS.start and first + count >= _UIDS.stop for first, _, count in spans)


def _groups() -> tuple[int, ...]:
    """Return the group that may use KVM."""
    try:
        gid = os.stat("/dev/kvm").st_gid
    except OSError:
        return ()
    return (gid,) if gid else ()


def run(
    argv: Sequence[str | Path],
    *,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    max_bytes: int = OUTPUT_MAX_BYTES,
) -> Done:
    """Run a program to its end, with `stdin` as its input, and return its exit status and output.

    Raises:
        OSError: The program cannot be started, or has written more than `max_bytes`, and was killed.
        TimeoutError: It did not end within `timeout_s` seconds, and was killed.
    """
    process = _spawn(
        argv,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=env,
    )
    with process:
        try:
            out, err = exchange(process, stdin, timeout_s, max_bytes)
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
    may_bind: bool = False,
    cgroup: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a new session. It is killed when this process ends, even if that is killed.

    Read its output and errors from `stdout`, a non-blocking pipe. A file would have no size limit, and a guest can make QEMU
    print messages without end.

    Args:
        argv: Program and arguments.
        fds: Descriptors that it inherits.
        user: The user that it becomes.
        file_max_bytes: The size that a file it writes may have.
        prepare: Called in the new process first, still with all rights.
        may_bind: As another user it may still listen on the ports that are root's, and has no other right of root.
        cgroup: The directory of a cgroup, which the new process enters first.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)
    prctl = libc.prctl

    def become() -> None:
        """Prepare the new process: signals, limits, user, and its end with this one."""
        reset_signals()
        if cgroup is not None:
            _enter(cgroup)
        if prepare is not None:
            prepare()
        _forbid_core()
        if file_max_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_max_bytes, file_max_bytes))
        if user is not None:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            if may_bind:
                prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
            os.setresuid(user.uid, user.uid, user.uid)
            if may_bind:
                _keep_only(libc, _CAP_NET_BIND_SERVICE)
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
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},  # nothing else from our environment
        become=become,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return process


def _enter(cgroup: Path) -> None:
    """Move this new process to a cgroup; without it, it ends."""
    try:
        (cgroup / "cgroup.procs").write_text("0")
    except OSError as err:
        os.write(2, f"cannot enter {cgroup}: {err.strerror}\n".encode(errors="replace"))
        os._exit(1)


def accompany(argv: Sequence[str], fd: int) -> subprocess.Popen[bytes]:
    """Start a companion of this program, which inherits the descriptor `fd` alone, larger than 2, and ends when that closes.

    No code of ours runs between fork and exec, so a program with threads may call it. The companion gets its own session:
    Ctrl-C is for the program.
    """
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if _has_errors() else subprocess.DEVNULL,
        pass_fds=(fd,),
        cwd="/",
        restore_signals=True,
        start_new_session=True,
    )


def _has_errors() -> bool:
    """Return whether descriptor 2 is standard error: if a program has closed it, another file may have its number (PEP 446)."""
    try:
        return os.get_inheritable(2)
    except OSError:
        return False


def _keep_only(libc: ctypes.CDLL, capability: int) -> None:
    """Drop all capabilities but one, which the next program keeps: capabilities(7), "Ambient"."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # struct __user_cap_data_struct, linux/capability.h: effective, permitted, inheritable; twice, for 64 of them
    data = (ctypes.c_uint32 * 6)(*(1 << capability,) * 3, 0, 0, 0)
    if libc.capset(header, data) or libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot keep the right to listen on low ports")


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
    """Start a program. With `become`, which runs in it, it gets a new session, so Ctrl-C reaches only us.

    Without `become` it stays in our session, so signals from the terminal and `nohup` apply to it too.
    """
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        close_fds=True,
        pass_fds=fds,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in PRIVATE} if env is None else env,
        restore_signals=True,  # SIGPIPE and SIGXFSZ, which Python ignores
        start_new_session=become is not None,
        preexec_fn=become,
    )


def reset_signals() -> None:
    """Set every signal to its default action and unblock all."""
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def restart_signals() -> None:
    """Have signals as at the start of Python: writing to nobody, or more than a limit allows, is an error and not the end."""
    reset_signals()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)


def heard(*wanted: signal.Signals) -> tuple[signal.Signals, ...]:
    """Return the signals of `wanted` that our caller does not ignore: nohup ignores SIGHUP, `&` in a script SIGINT."""
    return tuple(number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN)


def detach(keep: Collection[int], log: Path | None) -> None:
    """Make this forked process independent of its caller: new session, directory / and only its own descriptors.

    Its environment is hidden. Descriptors 0 to 2 and those in `keep` stay open. Standard error goes to the file `log`, or is unchanged if None.
    """
    os.setsid()
    hide_environment()
    # Relative entries of PATH refer to the working directory of the caller.
    os.environ["PATH"] = os.pathsep.join(map(_absolute, os.get_exec_path()))
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if log is not None:
        try:
            fd = open_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError:  # the name is taken by something else, or the disk is full: run without a log
            fd = null
        os.dup2(fd, 2)
    # The caller may have replaced its streams by files whose descriptors are closed now, and will be reused.
    sys.stdin, sys.stdout, sys.stderr = (
        # By lines: what a process says before os._exit() must not stay in a buffer.
        open(fd, mode, 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - open to the end
        for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    gc.freeze()  # sockets and files among garbage of the caller would close their numbers, which are reused below
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # the descriptor of listdir itself is closed already
                os.close(fd)


def _absolute(folder: str) -> str:
    try:
        return os.path.abspath(folder)
    except FileNotFoundError:  # the working directory was deleted
        return "/"
