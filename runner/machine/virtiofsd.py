"""Directories of the host for a guest, served by virtiofsd over vhost-user."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rootdisk.durable import socket_address
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.limits import NAME_MAX
from rootdisk.system import process
from rootdisk.text import printable
from runner.machine.model import Helper, Share
from runner.machine.packages import how_to_install

_CAPABILITIES = {"mknod": "dev", "fsetid": "suid"}  # and the right of a volume that they are for
_RIGHTS = {"dev", "suid"}
_MODES = {"ro", "rw", *_RIGHTS}
_SYSTEM = {"proc", "sys", "dev", ".rootdisk"}  # the first part of paths that are the kernel's or our init's
_GUEST_PATH_MAX_BYTES = 1024
# Where distributions put it; seldom in PATH.
PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd")
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000  # linux/sched.h
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18  # linux/mount.h
_SYS_MOUNT_SETATTR, _MOUNT_ATTR_RDONLY, _AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = 442, 1, -100, 0x8000, 2


def parse(texts: Sequence[str]) -> tuple[Share, ...]:
    """The volumes of a command line, HOST:GUEST[:MODE] each, those above others first; BadInput."""
    found = sorted(map(_parse, texts), key=lambda share: share.guest.count("/"))
    guests = [share.guest for share in found]
    for guest in guests:
        if guests.count(guest) > 1:
            raise BadInput(f"--volume: two directories at {printable(guest)}", "give each its own place in the guest")
    return tuple(share._replace(tag=f"volume{number}") for number, share in enumerate(found))


def _parse(text: str) -> Share:
    shown = f"--volume '{printable(text, 120)}'"
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise BadInput(shown, "write HOST:GUEST or HOST:GUEST:MODE; neither path may have a ':' in it")
    host, guest = parts[:2]
    modes = parts[2].split(",") if len(parts) > 2 else []
    if not set(modes) <= _MODES or {"ro", "rw"} <= set(modes):
        raise BadInput(shown, "MODE is ro or rw, and with commas between: dev, suid")
    share = Share("", Path(host).absolute(), guest_path(guest, shown), "ro" in modes, frozenset(modes) & _RIGHTS)
    check(share.path)
    return share


def guest_path(text: str, shown: str, what: str = "a volume") -> str:
    """Where a volume or the like is mounted, as the kernel will see it; BadInput if that cannot be."""
    if not text.startswith("/"):
        raise BadInput(shown, "the place in the guest is an absolute path")
    names = [name for name in text.split("/") if name not in ("", ".")]
    if ".." in names or not text.isprintable() or any(len(os.fsencode(name)) > NAME_MAX for name in names):
        raise BadInput(shown, "the place in the guest is a plain path: no '..', printable characters")
    if not names or names[0] in _SYSTEM or names[:2] == ["run", "rootdisk"]:
        raise BadInput(shown, f"{what} cannot be / or in /dev, /proc, /sys, /.rootdisk and /run/rootdisk")
    path = "/" + "/".join(names)
    if len(os.fsencode(path)) > _GUEST_PATH_MAX_BYTES:
        raise BadInput(shown, f"the place in the guest has more than {_GUEST_PATH_MAX_BYTES} bytes")
    return path


def check(path: Path) -> None:
    """BadInput if `path` is not a directory that can be served."""
    if not path.is_dir():
        what = "is not a directory" if os.path.lexists(path) else "is not there"
        raise BadInput(f"--volume: {printable(path)} {what}", "a volume is a directory of the host")
    if not os.access(path, os.R_OK | os.X_OK):
        raise BadInput(
            f"--volume: {printable(path)} may not be read", "by its permissions, or those of a directory above"
        )


def program() -> str:
    """virtiofsd's path; RootdiskError says what to install."""
    for path in (process.find("virtiofsd"), *PLACES):
        if path and os.access(path, os.X_OK):
            return path
    raise RootdiskError("--volume needs virtiofsd, which is not installed", how_to_install("virtiofsd"))


def check_user(path: str) -> None:
    """Check that a user who is not root can run this virtiofsd; RootdiskError says what to do."""
    if "--shared-dir" not in process.run([path, "--help"], timeout_s=process.PROBE_S).text and os.geteuid():
        raise RootdiskError("--volume: this virtiofsd runs only as root", "install virtiofsd 1.0 or newer")


def has_user_namespaces() -> bool:
    """Tell whether this user can make namespaces, which read-only volumes need."""
    pid = os.fork()
    if not pid:
        flags = _CLONE_NEWNS | _CLONE_NEWUSER
        os._exit(1 if ctypes.CDLL(None).unshare(flags) else 0)
    return os.waitpid(pid, 0)[1] == 0


def serve(share: Share, folder: Path) -> tuple[Helper, socket.socket]:
    """A virtiofsd for `share`, and a socket connected to it, which is made in `folder`.

    A read-only share is so on the host's side: virtiofsd sees the directory mounted read-only.
    """
    virtiofsd = program()
    share = share._replace(path=share.path.resolve())  # virtiofsd takes no link; a read-only mount would lie beside it
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(folder, f"{share.tag}.sock") as address:
        with listener:
            listener.bind(address)
            listener.listen(1)
            server = process.start(
                _command(virtiofsd, share, listener.fileno()),
                fds=[listener.fileno()],
                prepare=_prepared(share),
            )
        ours.connect(address)
        os.unlink(address)
    return Helper(server, f"the volume {printable(share.guest)}", True), ours


def _command(virtiofsd: str, share: Share, fd: int) -> list[str]:
    is_root = os.geteuid() == 0
    # Without FSETID the kernel takes the bits from a program that is written to.
    dropped = ":".join(f"-{name}" for name, right in _CAPABILITIES.items() if right not in share.rights)
    done = process.run([virtiofsd, "--help"], timeout_s=process.PROBE_S)
    if "--shared-dir" in done.text:
        capabilities = [f"--modcaps={dropped}"] if dropped and is_root else []
        sandbox = "namespace" if is_root else "none"
        return [virtiofsd, "--fd", str(fd), "--shared-dir", str(share.path), "--sandbox", sandbox, *capabilities]
    if not is_root:
        raise RootdiskError("--volume: this virtiofsd runs only as root", "install virtiofsd 1.0 or newer")
    source = str(share.path).replace("\\", "\\\\").replace(",", "\\,")
    capabilities = ["-o", f"modcaps={dropped}"] if dropped else []
    return [virtiofsd, f"--fd={fd}", "-o", f"source={source}", *capabilities]


def _prepared(share: Share) -> Callable[[], None]:
    """What the server's process does before it becomes virtiofsd."""
    mount = _read_only(share.path) if share.read_only else None
    confine = confined(share.rights)

    def prepare() -> None:
        if mount is not None:
            mount()
        confine()

    return prepare


def confined(rights: Collection[str]) -> Callable[[], None]:
    """What a process does to make no files that would give others rights on the host, but for what `rights` allow."""
    from runner.machine import seccomp

    filter_ = seccomp.program(os.uname().machine, rights)
    return lambda: seccomp.install(filter_)


def _read_only(path: Path) -> Callable[[], None]:
    """What a process does to see `path` read-only, and everything else as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(path)
    uid, gid = os.geteuid(), os.getegid()
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY)  # struct mount_attr: attr_set first

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "cannot mount it read-only")

    def prepare() -> None:
        check(libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)))
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        check(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
        check(libc.mount(target, target, None, ctypes.c_ulong(_MS_BIND | _MS_REC), None))
        # With all that is mounted below it.
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        if not libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, target, _AT_RECURSIVE, ctypes.byref(attributes), size):
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
            check(-1)
        # Before Linux 5.12: without what is mounted below it.
        check(libc.umount2(target, _MNT_DETACH))
        check(libc.mount(target, target, None, ctypes.c_ulong(_MS_BIND), None))
        flags = ctypes.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY)
        check(libc.mount(None, target, None, flags, None))

    return prepare
