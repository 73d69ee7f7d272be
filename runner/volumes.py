"""Directories of the host for a guest, served by virtiofsd over vhost-user."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from runner import process
from runner.errors import RootdiskError
from runner.files import socket_address
from runner.machine import Share

# Where distributions put it; seldom in PATH.
PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd")
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000  # linux/sched.h
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18  # linux/mount.h


def program() -> str:
    """virtiofsd's path; RootdiskError says what to install."""
    for path in (process.find("virtiofsd"), *PLACES):
        if path and os.access(path, os.X_OK):
            return path
    raise RootdiskError("--volume needs virtiofsd, which is not installed", "apt-get install virtiofsd")


def serve(share: Share, folder: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A virtiofsd for `share`, with its log in `folder`, and a socket connected to it.

    A read-only share is so on the host's side: virtiofsd sees the directory mounted read-only.
    """
    virtiofsd = program()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(folder, f"{share.tag}.sock") as address:
        with listener:
            listener.bind(address)
            listener.listen(1)
            server = process.start(
                _command(virtiofsd, share.path, listener.fileno()),
                log=folder / f"{share.tag}.log",
                fds=[listener.fileno()],
                prepare=_read_only(share.path) if share.read_only else None,
            )
        ours.connect(address)
        os.unlink(address)
    return server, ours


def _command(virtiofsd: str, path: Path, fd: int) -> list[str]:
    done = process.run([virtiofsd, "--help"], timeout_s=process.PROBE_S)
    if "--shared-dir" in done.text:
        sandbox = "namespace" if os.geteuid() == 0 else "none"
        return [virtiofsd, "--fd", str(fd), "--shared-dir", str(path), "--sandbox", sandbox]
    if os.geteuid():
        raise RootdiskError("--volume: this virtiofsd runs only as root", "install virtiofsd 1.0 or newer")
    return [virtiofsd, f"--fd={fd}", "-o", f"source={path}"]


def _read_only(path: Path) -> Callable[[], None]:
    """What a process does to see `path` read-only, and everything else as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(path)
    uid, gid = os.geteuid(), os.getegid()

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
        flags = ctypes.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY)
        check(libc.mount(None, target, None, flags, None))

    return prepare
