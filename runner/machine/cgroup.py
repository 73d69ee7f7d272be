"""A cgroup (version 2) for the machine of a sandbox: what its processes on the host may take of memory, processors and processes.

It is made if this process runs in a cgroup that is delegated to it. systemd marks such a cgroup (Delegate=yes in a unit). Without
systemd it is the topmost one that is mounted, as in a container, or one that belongs to a user other than root: root can write to
all, also to those of other services. Controllers can be enabled only in a cgroup without processes of its own, so those that are
there move one level down first:

    unit/                    delegated
    unit/rootdisk/           what was in unit: the runner, the keepers
    unit/rootdisk-RANDOM/    the machine of one sandbox: QEMU, virtiofsd, passt

The keeper removes it at the end. What a killed keeper leaves is soon empty, because its machine ends too: who has the sandbox's lock
then removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from rootdisk.errors import RootdiskError
from runner.machine.model import Machine

OFF = "ROOTDISK_CGROUP"  # 0: no cgroups are made
CALLERS = "rootdisk"
CONTROLLERS = ("cpu", "memory", "pids")
PREFIX = "rootdisk-"
# What QEMU and its helpers need beside the guest's memory.
_BASE_BYTES, _PROCESSOR_BYTES, _SHARE_BYTES = 192 << 20, 8 << 20, 128 << 20
_TRANSLATED_BYTES = 1 << 30  # QEMU's buffer for translated code, if it emulates
_PAGE_TABLES = 256  # page tables take this part of the memory, twice what they are: QEMU's and the guest's
_PERIOD_US = 100_000
_THREADS, _SHARE_THREADS = 256, 128  # QEMU starts up to 64 threads for its disks
_MOVES_MAX = 20
_EMPTY_S, _POLL_S = 2.0, 0.02
_PATH_MAX = 900  # of what is noted in a sandbox's state


class NotDelegated(RootdiskError):
    """The reason why no cgroup can be made here."""


class Cgroup:
    """The cgroup of one sandbox's machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory_bytes = self._limit_bytes = 0

    @classmethod
    def create(cls) -> Cgroup:
        """Make a cgroup below this process's own.

        Raises:
            NotDelegated: None can be made here.
        """
        parent = delegated()
        try:
            _enable(parent)
            folder = parent / f"{PREFIX}{os.urandom(8).hex()}"
            folder.mkdir(mode=0o755)
        except OSError as err:
            raise NotDelegated(f"{parent}: {err.strerror}") from err
        return cls(folder)

    def limit(self, machine: Machine) -> None:
        """Set the limits of a machine, as far as this host has the controllers."""
        extra = overhead_bytes(machine) + _tmpfs_bytes(machine)
        self._memory_bytes = machine.memory_mib << 20
        self._limit_bytes = self._memory_bytes + extra
        for name, value in limits(machine, extra).items():
            with contextlib.suppress(OSError):  # the controller is not enabled here
                (self.folder / name).write_text(value)

    @property
    def oom_text(self) -> str:
        """Say why the kernel has killed the machine, if memory ran out; "" if it has not."""
        words = _read(self.folder / "memory.events").split()
        counts = dict(zip(words[::2], words[1::2], strict=False))
        if counts.get("oom_kill", "0") == "0":
            return ""
        if counts.get("oom", "0") == "0":  # somebody else's limit was reached
            return "the kernel has killed the machine because memory ran out: of this host, or of a cgroup around the runner's"
        memory, limit = self._memory_bytes >> 20, self._limit_bytes >> 20
        return (
            "the kernel has killed the machine at the memory limit of its cgroup, "
            f"{limit} MiB: {memory} for the guest, {limit - memory} for QEMU"
        )

    def close(self) -> None:
        """Remove it; its processes have ended, or are killed."""
        with contextlib.suppress(OSError):  # since Linux 5.14
            fd = os.open(self.folder / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"1")
            finally:
                os.close(fd)
        deadline = time.monotonic() + _EMPTY_S
        while not remove_left(str(self.folder)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def limits(machine: Machine, extra_bytes: int) -> dict[str, str]:
    """Return the limits of a machine, by the file of its cgroup: cgroup-v2.rst in the kernel's documentation."""
    return {
        "memory.max": str((machine.memory_mib << 20) + extra_bytes),
        "memory.oom.group": "1",  # a machine without the server of its volume stands still
        "cpu.max": f"{machine.cpus * _PERIOD_US} {_PERIOD_US}",
        "pids.max": str(_THREADS + machine.cpus + _SHARE_THREADS * len(machine.shares)),
    }


def overhead_bytes(machine: Machine) -> int:
    """Return what QEMU and its helpers may take beside the guest's memory."""
    translated = _TRANSLATED_BYTES if machine.accelerator == "tcg" else 0
    tables = (machine.memory_mib << 20) // _PAGE_TABLES
    return _BASE_BYTES + _PROCESSOR_BYTES * machine.cpus + _SHARE_BYTES * len(machine.shares) + tables + translated


def tmpfs_devices(mountinfo: str) -> set[int]:
    """Return the devices (st_dev) of the file systems that are in memory; proc(5)."""
    devices = set()
    for line in mountinfo.splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith(("tmpfs ", "ramfs ")):
            major, _, minor = fields.split()[2].partition(":")
            devices.add(os.makedev(int(major), int(minor)))
    return devices


def _tmpfs_bytes(machine: Machine) -> int:
    """Return how much a machine can write to file systems in memory. What it writes there counts as its own, and is not reclaimed."""
    known = tmpfs_devices(_read("/proc/self/mountinfo"))
    sizes = {}
    for path in (machine.disk.parent, *(share.path for share in machine.shares if not share.read_only)):
        with contextlib.suppress(OSError):
            if (device := os.stat(path).st_dev) in known:
                found = os.statvfs(path)
                sizes[device] = found.f_blocks * found.f_frsize or os.sysconf("SC_PHYS_PAGES") * os.sysconf(
                    "SC_PAGE_SIZE"
                )
    return sum(sizes.values())


def delegated() -> Path:
    """Return the cgroup below which this process may make its own. Nothing is changed.

    Raises:
        NotDelegated: There is none; the message says why.
    """
    if os.environ.get(OFF) == "0":
        raise NotDelegated(f"off: {OFF}=0")
    own = own_folder(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup"))
    if own is None:
        raise NotDelegated("this host has no cgroups of version 2")
    is_ours = own.name == CALLERS
    for folder in (own.parent,) if is_ours else (own, own.parent):
        if _is_delegated(folder):
            if missing(folder) == list(CONTROLLERS):
                raise NotDelegated(f"{folder} lacks the controllers {', '.join(CONTROLLERS)}")
            return folder
    raise NotDelegated(f"{own} is not delegated to you", "systemd-run --user --scope -p Delegate=yes runner …")


def own_folder(mountinfo: str, cgroup: str) -> Path | None:
    """Return the directory of a process's cgroup of version 2, from two files of proc(5); None if there is none."""
    path = next((line[3:] for line in cgroup.splitlines() if line.startswith("0::")), None)
    for line in mountinfo.splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 ") and path is not None and len(fields.split()) > 4:
            root, place = fields.split()[3:5]
            if path != root and not path.startswith(root.rstrip("/") + "/"):
                return None  # it is above what is mounted here
            return Path(place) / path[len(root.rstrip("/")) :].strip("/")
    return None


def missing(folder: Path) -> list[str]:
    """Return the controllers that a delegated cgroup does not have."""
    here = _read(folder / "cgroup.controllers").split()
    return [name for name in CONTROLLERS if name not in here]


def end_left(path: str) -> None:
    """Remove the cgroup of a sandbox whose keeper was killed, and kill the processes that are still in it."""
    folder = Path(path)
    if folder.name.startswith(PREFIX):
        Cgroup(folder).close()


def remove_left(path: str) -> bool:
    """Remove an empty cgroup of ours. Return whether it is gone."""
    folder = Path(path)
    if folder.name.startswith(PREFIX) and (folder.parent / "cgroup.procs").exists():
        try:
            folder.rmdir()
        except OSError as err:
            return err.errno == errno.ENOENT
    return True


def _is_delegated(folder: Path) -> bool:
    files = (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control")
    if len(str(folder)) > _PATH_MAX or not all(os.access(path, os.W_OK) for path in files):
        return False
    if not os.path.exists("/run/systemd/system"):  # sd_booted(3)
        is_top = not (folder.parent / "cgroup.procs").exists()
        return is_top or folder.stat().st_uid == os.geteuid() != 0
    for name in ("user.delegate", "trusted.delegate"):  # systemd's CGROUP_DELEGATION
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _enable(folder: Path) -> None:
    """Enable the controllers for cgroups below `folder`."""
    here = _read(folder / "cgroup.controllers").split()
    wanted = [name for name in CONTROLLERS if name in here]
    for _ in range(_MOVES_MAX):
        enabled = _read(folder / "cgroup.subtree_control").split()
        order = " ".join(f"+{name}" for name in wanted if name not in enabled)
        if not order:
            return
        try:
            (folder / "cgroup.subtree_control").write_text(order)
            return
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
        _move_down(folder)  # another process may come meanwhile
    raise OSError(errno.EBUSY, "its processes cannot be moved")


def _move_down(folder: Path) -> None:
    """Move the processes of a cgroup to one below it."""
    below = folder / CALLERS
    below.mkdir(exist_ok=True)
    for pid in _read(folder / "cgroup.procs").split():
        try:
            (below / "cgroup.procs").write_text(pid)
        except ProcessLookupError:  # it has ended
            continue


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
