"""The cache of disks is bounded: what is used least lately goes first, what is in use never; rests of dead builds go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagetool.build import disk_cache
from imagetool.guest import kernel

PROGRAM = """
import sys, time
from pathlib import Path
from imagetool.build import disk_cache
with disk_cache.new_disk(Path(sys.argv[1])) as work:
    (work / "data").write_bytes(b"x")
    print(work, flush=True)
    sys.stdin.read()
"""


def disk(cache: Path, number: int, size: int = 4096) -> Path:
    folder = cache / "disks" / f"{number:064x}"
    folder.mkdir(parents=True)
    (folder / "rootfs.ext4.zst.000").write_bytes(b"x" * size)
    os.utime(folder, (number, number))
    return folder


def kept(cache: Path) -> list[int]:
    return sorted(int(path.name, 16) for path in (cache / "disks").iterdir() if not path.name.startswith("."))


def test_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "KEPT_COUNT", 3)
    folders = [disk(tmp_path, number) for number in range(1, 9)]
    (tmp_path / "app").mkdir()
    (tmp_path / "app/disk").symlink_to(os.path.relpath(folders[0], tmp_path / "app"))
    disk_cache._use(folders[2])
    used = disk_cache._used.pop()
    disk_cache.tidy(tmp_path)
    assert kept(tmp_path) == [1, 3, 6, 7, 8]
    os.close(used)
    disk_cache.tidy(tmp_path)
    assert kept(tmp_path) == [1, 6, 7, 8]


def test_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that several disks share counts once."""
    monkeypatch.setattr(disk_cache, "KEPT_BYTES", 100_000)
    first = disk(tmp_path, 1, 60_000)
    for number in (2, 3):
        folder = disk(tmp_path, number, 1000)
        os.link(first / "rootfs.ext4.zst.000", folder / "shared")
        os.utime(folder, (number, number))
    disk_cache.tidy(tmp_path)
    assert kept(tmp_path) == [1, 2, 3]
    disk(tmp_path, 4, 60_000)
    disk_cache.tidy(tmp_path)
    assert kept(tmp_path) == [4]


def test_rests_of_dead_builds(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    works = []
    for process in running:
        assert process.stdout is not None
        works.append(Path(process.stdout.readline().strip()))
    running[0].kill()
    running[0].wait(60)
    disk_cache.tidy(tmp_path)
    assert [work.exists() for work in works] == [False, True]
    running[1].communicate("", timeout=60)
    assert not works[1].exists()


def test_without_a_cache(tmp_path: Path) -> None:
    disk_cache.tidy(tmp_path)
    assert not list(tmp_path.iterdir())


def test_kernels(tmp_path: Path) -> None:
    now = 1_000_000_000
    for number in range(8):
        for name in (f"linux-image-6.{number}_amd64", f"boot-{number}", f".kernel-{number}"):
            (tmp_path / name).mkdir()
            age = 2 * kernel.DAY_S + number if number else 60
            os.utime(tmp_path / name, (now - age, now - age))
    kernel.tidy(tmp_path, now)
    names = set(os.listdir(tmp_path))
    assert names == {".kernel-0", *(f"boot-{n}" for n in range(4)), *(f"linux-image-6.{n}_amd64" for n in range(4))}
