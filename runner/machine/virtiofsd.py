"""Share directories of the host with a guest, through virtiofsd and vhost-user."""

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

_CAPABILITIES = {"mknod": "dev", "fsetid": "suid"}  # capability, and the right that needs it
_RIGHTS = {"dev", "suid"}
_FILE = "file"  # the name of a file that is a volume; imagetool/guest/c/mounts.c
_MODES = {"ro", "rw", *_RIGHTS}
_CONTAINER_MODES = {
    "z",
    "Z",
    "U",
    "cached",
    "consistent",
    "delegated",
    "nocopy",
    "private",
    "rprivate",
    "shared",
    "rshared",
}
_OF_CONTAINERS = "leave it out: a virtual machine needs no labels and no propagation"
_SYSTEM = {"proc", "sys", "dev", ".rootdisk"}  # first components of paths of the kernel or our init
_GUEST_PATH_MAX_BYTES = 1024
# Places in distributions; it is seldom in PATH.
PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd")
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000  # linux/sched.h
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18  # linux/mount.h
_SYS_MOUNT_SETATTR, _MOUNT_ATTR_RDONLY, _AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = 442, 1, -100, 0x8000, 2


def parse(texts: Sequence[str]) -> tuple[Share, ...]:
    """Parse volumes, HOST:GUEST[:MODE] each. Parent directories in the guest come first.

    Raises:
        BadInput: A volume is not valid, or two have the same place.
    """
    shares = sorted(map(_parse, texts), key=lambda share: share.guest.count("/"))
    guests = [share.guest for share in shares]
    for guest in guests:
        if guests.count(guest) > 1:
            raise BadInput(f"--volume: two directories at {printable(guest)}", "choose another place in the guest")
    return tuple(share._replace(tag=f"volume{number}") for number, share in enumerate(shares))


def _parse(text: str) -> Share:
    shown = f"--volume '{printable(text, 120)}'"
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise BadInput(shown, "write HOST:GUEST or HOST:GUEST:MODE; the paths must not contain ':'")
    host, guest = parts[:2]
    modes = parts[2].split(",") if len(parts) > 2 else []
    if not set(modes) <= _MODES or {"ro", "rw"} <= set(modes):
        unknown = [mode for mode in modes if mode not in _MODES]
        what = f"'{printable(unknown[0], 40)}' is not a mode here" if unknown else "ro and rw"
        hint = "MODE is ro, rw, dev or suid, several with commas between them"
        raise BadInput(f"{shown}: {what}", _OF_CONTAINERS if {*unknown} & _CONTAINER_MODES else hint)
    share = Share("", Path(host).absolute(), guest_path(guest, shown), "ro" in modes, frozenset(modes) & _RIGHTS)
    check(share.path)
    return share._replace(is_file=share.path.is_file())


def guest_path(text: str, shown: str, what: str = "a volume") -> str:
    """Normalize the mount point of a volume, or of `what`.

    Raises:
        BadInput: It is not a possible mount point. The message begins with `shown`.
    """
    if not text.startswith("/"):
        raise BadInput(shown, "the path in the guest must be absolute")
    names = [name for name in text.split("/") if name not in ("", ".")]
    if ".." in names or not text.isprintable() or any(len(os.fsencode(name)) > NAME_MAX for name in names):
        raise BadInput(shown, "the path in the guest must be plain: no '..' and no unprintable characters")
    if not names or names[0] in _SYSTEM or names[:2] == ["run", "rootdisk"]:
        raise BadInput(shown, f"{what} cannot be / or in /dev, /proc, /sys, /.rootdisk and /run/rootdisk")
    path = "/" + "/".join(names)
    if len(os.fsencode(path)) > _GUEST_PATH_MAX_BYTES:
        raise BadInput(shown, f"the path in the guest has more than {_GUEST_PATH_MAX_BYTES} bytes")
    return path


def check(path: Path) -> None:
    """Check that `path` is a readable directory or file.

    Raises:
        BadInput: It is not.
    """
    if not path.is_dir() and not path.is_file():
        if not os.path.lexists(path):
            import shlex

            make = f"mkdir -p {shlex.quote(printable(path))}"
            raise BadInput(
                f"--volume: {printable(path)} does not exist", f"a volume is a directory or a file of the host: {make}"
            )
        raise BadInput(f"--volume: {printable(path)} is not a directory or a file", "a volume must be one of these two")
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise BadInput(
            f"--volume: {printable(path)} is not readable", "check its permissions and those of its parent directories"
        )


def program() -> str:
    """Return the path of virtiofsd.

    Raises:
        RootdiskError: It is not installed.
    """
    for path in (process.find("virtiofsd"), *PLACES):
        if path and os.access(path, os.X_OK):
            return path
    raise RootdiskError("--volume needs virtiofsd, which is not installed", how_to_install("virtiofsd"))


def check_user(path: str) -> None:
    """Check that a user who is not root can run this virtiofsd; RootdiskError says what to do."""
    if os.geteuid() and _is_old(path):
        raise _for_root_only()


def _is_old(path: str) -> bool:
    """Return whether a virtiofsd is older than 1.0: it has other options, and runs only as root."""
    return "--shared-dir" not in process.run([path, "--help"], timeout_s=process.PROBE_S).text


def _for_root_only() -> RootdiskError:
    newer = how_to_install("virtiofsd", only_new=True)
    hint = f"virtiofsd 1.0 or newer runs for everybody: {newer}; or copy files with runner cp"
    return RootdiskError("--volume: this virtiofsd runs only as root", hint)


def has_user_namespaces() -> bool:
    """Tell whether this user can make namespaces, which read-only volumes need."""
    pid = os.fork()
    if not pid:
        flags = _CLONE_NEWNS | _CLONE_NEWUSER
        os._exit(1 if ctypes.CDLL(None).unshare(flags) else 0)
    return os.waitpid(pid, 0)[1] == 0


def serve(share: Share, folder: Path, cgroup: Path | None = None) -> tuple[Helper, socket.socket]:
    """Start virtiofsd for `share`, in `cgroup`. Return it and a connected socket, whose address was in `folder`.

    A read-only share is enforced on the host: virtiofsd sees the directory mounted read-only.
    """
    virtiofsd = program()
    share = share._replace(
        path=share.path.resolve()
    )  # virtiofsd refuses links, and a read-only mount would not cover the target
    place = folder / share.tag
    if share.is_file:  # it is served in a directory of its own, so that the guest sees nothing beside it
        place.mkdir(mode=0o700, exist_ok=True)
        (place / _FILE).touch(mode=0o600)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(folder, f"{share.tag}.sock") as address:
        with listener:
            listener.bind(address)
            listener.listen(1)
            server = process.start(
                _command(virtiofsd, share._replace(path=place) if share.is_file else share, listener.fileno()),
                fds=[listener.fileno()],
                prepare=_prepared(share, place / _FILE),
                cgroup=cgroup,
            )
            ours.connect(address)  # while the listener is open: the server may have ended already
        os.unlink(address)
    return Helper(server, f"the volume {printable(share.guest)}", True), ours


def _command(virtiofsd: str, share: Share, fd: int) -> list[str]:
    is_root = os.geteuid() == 0
    # Without FSETID the kernel clears these bits when a program is changed.
    dropped = ":".join(f"-{name}" for name, right in _CAPABILITIES.items() if right not in share.rights)
    if not _is_old(virtiofsd):
        capabilities = [f"--modcaps={dropped}"] if dropped and is_root else []
        sandbox = "namespace" if is_root else "none"
        return [virtiofsd, "--fd", str(fd), "--shared-dir", str(share.path), "--sandbox", sandbox, *capabilities]
    if not is_root:
        raise _for_root_only()
    source = str(share.path).replace("\\", "\\\\").replace(",", "\\,")
    capabilities = ["-o", f"modcaps={dropped}"] if dropped else []
    return [virtiofsd, f"--fd={fd}", "-o", f"source={source}", *capabilities]


def _prepared(share: Share, file: Path) -> Callable[[], None]:
    """Return a function that restricts the new process before it executes virtiofsd. It sees a share of a file at `file`."""
    is_bound = share.is_file or share.read_only
    mount = _bound(share.path, file if share.is_file else share.path, share.read_only) if is_bound else None
    confine = confined(share.rights)

    def prepare() -> None:
        """Mount the share, then install the filter."""
        if mount is not None:
            mount()
        confine()

    return prepare


def confined(rights: Collection[str]) -> Callable[[], None]:
    """Return a function that installs the filter of seccomp.py in a process."""
    from runner.machine import seccomp

    filter_ = seccomp.program(os.uname().machine, rights)
    return lambda: seccomp.install(filter_)


def _bound(path: Path, place: Path, read_only: bool) -> Callable[[], None]:
    """Return a function that mounts `path` at `place` for the calling process, in a new mount namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    source, target = os.fsencode(path), os.fsencode(place)
    uid, gid = os.geteuid(), os.getegid()
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY)  # struct mount_attr: attr_set first

    def check(result: int) -> None:
        """Raise OSError if a call has failed."""
        if result:
            raise OSError(ctypes.get_errno(), "cannot mount it")

    def prepare() -> None:
        """Mount `source` at `target`, read-only if asked."""
        check(libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)))
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        check(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
        check(libc.mount(source, target, None, ctypes.c_ulong(_MS_BIND | _MS_REC), None))
        if not read_only:
            return
        # Including everything mounted below it.
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        if not libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, target, _AT_RECURSIVE, ctypes.byref(attributes), size):
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
            check(-1)
        # Before Linux 5.12: without the mounts below it.
        check(libc.umount2(target, _MNT_DETACH))
        check(libc.mount(source, target, None, ctypes.c_ulong(_MS_BIND), None))
        flags = ctypes.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY)
        check(libc.mount(None, target, None, flags, None))

    return prepare
