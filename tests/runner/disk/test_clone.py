"""Copies of a disk and the slot in them, judged by QEMU's own tools."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from rootdisk.artifact.format import SlotExtent
from rootdisk.errors import BadInput, RootdiskError
from runner.disk import slot
from runner.disk.clone import Clone, clone

EXTENT = SlotExtent("slot", 1 << 20, 256 << 10)
SIZE = (600 << 20) + 4096

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A sparse disk with a few runs of data."""
    path = tmp_path / "base.raw"
    chance = random.Random(7)
    with path.open("wb") as file:
        for place in (0, 1 << 20, 5 << 20, 530 << 20, SIZE - 4096):
            file.seek(place)
            file.write(chance.randbytes(4096))
        file.truncate(SIZE)
    path.chmod(0o400)
    return path


def raw(disk: Clone, target: Path) -> Path:
    """The disk as the guest sees it."""
    subprocess.run(["qemu-img", "convert", "-f", disk.form, "-O", "raw", str(disk.path), str(target)], check=True)
    return target


def tools(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), length, offset)


def made(base: Path, folder: Path, method: str | None, filled: slot.Slot, size: int = SIZE) -> Clone:
    folder.mkdir()
    disk = clone(base, size, folder, method, slot.clusters(EXTENT, filled))
    slot.write(disk.path, EXTENT, filled, folder / "slot.json", overlay=disk.overlay)
    return disk


@needs_qemu_img
@pytest.mark.parametrize("method", [None, "copy"])
@pytest.mark.parametrize("size", [SIZE, 1 << 30])
def test_a_clone_is_the_base_and_its_slot(base: Path, tmp_path: Path, method: str | None, size: int) -> None:
    before = hashlib.file_digest(base.open("rb"), "sha256").digest()
    filled = slot.pack([("env", b"A=1")], EXTENT.length)
    disk = made(base, tmp_path / "one", method, filled, size)
    if disk.overlay:
        tools("qemu-img", "check", str(disk.path))
    seen = raw(disk, tmp_path / "seen")
    assert seen.stat().st_size == size
    assert read(seen, EXTENT.offset, EXTENT.length) == filled.data
    for place in (0, 5 << 20, 530 << 20, SIZE - 4096):
        assert read(seen, place, 4096) == read(base, place, 4096)
    assert stat.S_IMODE(disk.path.stat().st_mode) == 0o600
    assert disk.path.stat().st_blocks * 512 < 2 << 20
    assert hashlib.file_digest(base.open("rb"), "sha256").digest() == before


@needs_qemu_img
def test_an_overlay_of_many_clusters(base: Path, tmp_path: Path) -> None:
    """More than one block of reference counts."""
    patches = {n << 16: b"x%d" % n for n in range(33000)}
    disk = clone(base, 33000 << 16, tmp_path, None, patches)
    tools("qemu-img", "check", str(disk.path))
    tools("qemu-io", "-f", "qcow2", "-r", "-c", f"read -P 0x78 {32999 << 16} 1", str(disk.path))


@pytest.mark.parametrize("method", [None, "copy"])
def test_a_restart_writes_the_slot_again(base: Path, tmp_path: Path, method: str | None) -> None:
    folder = tmp_path / "one"
    disk = made(base, folder, method, slot.pack([("env", b"A=1")], EXTENT.length))
    for number in range(3):
        filled = slot.pack([("env", b"A=" + b"x" * number * 70000)], EXTENT.length)
        slot.rewrite(disk.path, EXTENT, filled, folder / "slot.json", overlay=disk.overlay)
    assert b"x" * 70000 not in (folder / "slot.json").read_bytes()


@needs_qemu_img
@pytest.mark.parametrize("method", [None, "copy"])
@pytest.mark.parametrize("change", ["write 1114112 512", "write -z 1048576 64k"])
def test_a_changed_slot_is_not_written(base: Path, tmp_path: Path, method: str | None, change: str) -> None:
    """Where other bytes than ours stand in the slot's place, they stay."""
    folder = tmp_path / "one"
    disk = made(base, folder, method, slot.pack([("env", b"A=1")], EXTENT.length))
    tools("qemu-io", "-f", disk.form, "-c", change, str(disk.path))
    before = disk.path.read_bytes() if disk.overlay else b""
    with pytest.raises(RootdiskError, match=r"slot has changed|overlay has no cluster"):
        slot.rewrite(disk.path, EXTENT, slot.pack([], EXTENT.length), folder / "slot.json", overlay=disk.overlay)
    assert not disk.overlay or disk.path.read_bytes() == before


def test_a_rewrite_cut_off_can_be_done_again(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    old = slot.pack([("env", b"A=" + b"o" * 200000)], EXTENT.length)
    new = slot.pack([("env", b"A=" + b"n" * 200000)], EXTENT.length)
    disk = made(base, folder, "copy", old)
    slot.rewrite(disk.path, EXTENT, new, folder / "slot.json", overlay=False)
    slot.write(disk.path, EXTENT, old, folder / "other", overlay=False)
    # As if killed after the first of the clusters: the record knows both.
    pairs = [
        sorted({a, b})
        for a, b in zip(*(slot._digests(slot.clusters(EXTENT, s).values()) for s in (old, new)), strict=True)
    ]
    slot.write_json(folder / "slot.json", pairs)  # type: ignore[attr-defined]
    with disk.path.open("r+b") as file:
        os.pwrite(file.fileno(), new.data[:65536], EXTENT.offset)
    slot.rewrite(disk.path, EXTENT, new, folder / "slot.json", overlay=False)
    assert read(disk.path, EXTENT.offset, EXTENT.length) == new.data


def test_no_reflink_is_one_clear_error(base: Path) -> None:
    """Where the file system has none; nothing is left."""
    shm = Path("/dev/shm") / f"rootdisk-{os.getpid()}"
    shm.mkdir()
    try:
        with pytest.raises(BadInput, match="reflink"):
            clone(base, SIZE, shm, "reflink", {})
        assert not list(shm.iterdir())
    finally:
        shutil.rmtree(shm)


def test_a_copy_that_its_file_system_does_not_allow(base: Path, tmp_path: Path) -> None:
    """EFBIG is not the want of room. ulimit -f gives it on every file system, ext4 from 16 TiB on."""
    (tmp_path / "box").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, limits[1]))
    try:
        with pytest.raises(RootdiskError, match=r"ulimit -f, allows no file of 17592186044416 bytes") as failed:
            clone(base, 16 << 40, tmp_path / "box", "copy", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "room" not in str(failed.value)
    assert list((tmp_path / "box").iterdir()) == []
