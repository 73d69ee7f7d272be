"""Cgroups: where this process's own is, and the limits of a machine. tests/end_to_end/test_cgroups.py makes some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rootdisk.oci.documents import Platform
from runner.machine import cgroup
from runner.machine.model import Machine, Share

MOUNT = "30 23 0:26 {root} {place} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OLD = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("root", "place", "cgroups", "folder"),
    [
        ("/", "/sys/fs/cgroup", "0::/user.slice/a.scope\n", "/sys/fs/cgroup/user.slice/a.scope"),
        ("/", "/sys/fs/cgroup", "0::/\n", "/sys/fs/cgroup"),
        ("/", "/sys/fs/cgroup/unified", "4:memory:/x\n0::/y\n", "/sys/fs/cgroup/unified/y"),
        ("/docker/1", "/sys/fs/cgroup", "0::/docker/1/z\n", "/sys/fs/cgroup/z"),
        ("/docker/1", "/sys/fs/cgroup", "0::/docker/12\n", None),
        ("/", "/sys/fs/cgroup", "4:memory:/x\n", None),
    ],
)
def test_the_own_folder(root: str, place: str, cgroups: str, folder: str | None) -> None:
    mounts = OLD + MOUNT.format(root=root, place=place)
    assert cgroup.own_folder(mounts, cgroups) == (None if folder is None else Path(folder))
    assert cgroup.own_folder(OLD, cgroups) is None


def machine(accelerator: str, shares: int = 0) -> Machine:
    share = Share("tag", Path("/"), "/x", False)
    machine = Machine(
        *(Platform("linux", "amd64"), accelerator, 512, 2, None, None, "", "", Path(), "raw", 1, None, False, "none")
    )
    return machine._replace(shares=(share,) * shares)


def test_limits() -> None:
    def limits(machine: Machine) -> dict[str, str]:
        return cgroup.limits(machine, cgroup.overhead_bytes(machine))

    assert limits(machine("kvm")) == {
        "memory.max": str((512 + 192 + 2 * 8 + 2) << 20),
        "memory.oom.group": "1",
        "cpu.max": "200000 100000",
        "pids.max": "258",
    }
    emulated = limits(machine("tcg", 2))
    assert emulated["memory.max"] == str((512 + 192 + 2 * 8 + 2 + 2 * 128 + 1024) << 20)
    assert emulated["pids.max"] == str(258 + 2 * 128)


def test_file_systems_in_memory() -> None:
    mounts = "41 23 0:30 / /tmp rw - tmpfs tmpfs rw\n42 23 0:31 / /r rw shared:1 - ramfs none rw\n43 23 8:1 / / rw - ext4 /a rw\n"
    assert cgroup.tmpfs_devices(mounts) == {os.makedev(0, 30), os.makedev(0, 31)}


def test_what_it_writes_to_memory_counts(tmp_path: Path) -> None:
    """A tmpfs of the host is charged to who writes to it: a guest that fills its volume must not be killed for that."""
    shared = Path("/dev/shm")
    if os.stat(shared).st_dev not in cgroup.tmpfs_devices(Path("/proc/self/mountinfo").read_text()):
        pytest.skip("/dev/shm is no tmpfs")

    def limit(read_only: bool) -> int:
        share = Share("tag", shared, "/x", read_only)
        cgroup.Cgroup(tmp_path).limit(machine("kvm")._replace(shares=(share, share), disk=tmp_path / "disk"))
        return int((tmp_path / "memory.max").read_text())

    found = os.statvfs(shared)
    assert limit(False) - limit(True) == found.f_blocks * found.f_frsize


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ("low 0\nmax 9\noom 0\noom_kill 0\n", ""),
        ("max 9\noom 1\noom_kill 1\noom_group_kill 1\n", "at the memory limit of its cgroup"),
        ("max 0\noom 0\noom_kill 3\n", "of this host, or of a cgroup around"),
        ("", ""),
    ],
)
def test_whose_limit_it_was(tmp_path: Path, events: str, text: str) -> None:
    (tmp_path / "memory.events").write_text(events)
    said = cgroup.Cgroup(tmp_path).oom_text
    assert text in said
    assert bool(text) == bool(said)


def test_only_ours_are_removed(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    for name in ("rootdisk-0", "other"):
        (tmp_path / name).mkdir()
        assert cgroup.remove_left(str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["other"]
