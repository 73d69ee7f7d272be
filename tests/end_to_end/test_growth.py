"""Larger disks in a guest: grown by the runner, then online by the kernel, which goes on from there; e2fsck agrees after."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.machine.tsc import Counter
from runner.sandbox import launch, prepare
from runner.sandbox.state import Spec
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.commands import Runner
from tests.support.disks import complaints, needs_e2fsck
from tests.support.waiting import until

FILL = """
import os
room = os.statvfs("/")
print(room.f_blocks * 4096 >> 30)
with open("/sandbox/filled", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, room.f_bavail * 4096 * 9 // 10)
    os.pwrite(file.fileno(), b"the end", room.f_bavail * 4096 * 9 // 10 - 7)
with open("/sandbox/filled", "rb") as file:
    file.seek(-7, 2)
    print(file.read().decode())
"""
GROW = """
import fcntl, os, struct
root = os.open("/", os.O_RDONLY)
fcntl.ioctl(root, 0x40086610, struct.pack("Q", (20 << 30) // 4096))  # EXT4_IOC_RESIZE_FS
with open("/filled", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, 15 << 30)
for number in range(2000):
    with open(f"/sandbox/file-{number}", "wb") as file:
        file.write(b"x" * number)
os.unlink("/sandbox/file-7")
print(os.statvfs("/").f_blocks * 4096 >> 30)
"""


def raw(store: Path, name: str, target: Path) -> Path:
    """The kept sandbox's disk as its guest saw it."""
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(store / f"sandboxes/{name}/disk.qcow2"), str(target)]
    subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return target


needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.mark.vm
@needs_e2fsck
@needs_qemu_img
def test_a_larger_disk(demo: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path / "store")
    options = ("--disk-size", "20g", "--name", "larger", "--keep", "--network", "none", "--entrypoint", "python3")
    done = runner("boot", *options, demo, "--", "-c", FILL)
    assert (done.stdout, done.stderr, done.returncode) == ("19\nthe end\n", "", 0)
    assert complaints(raw(runner.store, "larger", tmp_path / "raw")) == []
    done = runner("boot", "--disk-size", "4g", demo)
    assert done.returncode == 125
    assert done.stderr == "runner: --disk-size: 4GiB: write 8GiB, which the artifact's disk has, to 16TiB, as 20g\n"


@pytest.mark.vm
@needs_e2fsck
@needs_qemu_img
def test_a_guest_grows_its_disk(
    demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    store = Store.open()
    local = pull(store, parse_reference(demo), RegistryOptions(), Platform.host())
    assert local.kernel is not None
    assert local.initramfs is not None
    records = [("entrypoint", b"python3"), ("cmd", b"-c"), ("cmd", GROW.encode()), ("user", b"0")]
    spec = Spec(
        "grown", demo, str(local.digest), local.disk.stem, local.config_digest.hex, local.kernel.name,
        local.initramfs.name, 9 << 30, 512, 1, network="none", timeout_s=200, keep=True,
    )  # fmt: skip
    ready = prepare.create(store, local, spec, records)
    subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", str(ready.disk.path), "20G"], check=True)
    assert launch.launch(ready, store, Counter()) == 0
    assert capfd.readouterr().out.strip() in ("19", "20")
    assert complaints(raw(store.root, "grown", tmp_path / "raw")) == []


@pytest.mark.vm
@needs_qemu_img
@pytest.mark.nightly  # writes 800 MiB
@pytest.mark.parametrize("clone", ["overlay", "copy"])
def test_what_is_deleted_is_given_back(demo: str, tmp_path: Path, clone: str) -> None:
    runner = Runner(tmp_path / "store")
    done = runner(
        "boot",
        "-d",
        "--name",
        "gives",
        "--network",
        "none",
        "--clone",
        clone,
        "--entrypoint",
        "sleep",
        demo,
        "infinity",
    )
    assert done.returncode == 0, done.stderr
    (disk,) = (runner.store / "sandboxes/gives").glob("disk.*")

    def used() -> int:
        """Bytes of the disk's file on the host."""
        return disk.stat().st_blocks * 512

    def sh(script: str) -> None:
        done = runner("exec", "-u", "0", "gives", "sh", "-c", script, timeout=600)
        assert done.returncode == 0, done.stderr

    before = used()
    sh("python3 -c \"file = open('/big', 'wb'); [file.write(b'x' * (1 << 20)) for _ in range(800)]\"; sync")
    written = used() - before
    assert written > 790 << 20
    sh("rm /big; sync")
    until(lambda: used() - before <= written * 15 // 100)
    assert runner("stop", "gives").returncode == 0
    assert runner("start", "gives").returncode == 0  # the disk can be read, and its slot is where it was
    assert used() - before <= written * 15 // 100
    if clone == "overlay":
        assert runner("stop", "gives").returncode == 0
        done = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(disk)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    runner("rm", "-f", "gives")
