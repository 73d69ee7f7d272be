"""Emptying caches: what goes is said, with its bytes; what was published, or is somebody else's, stays."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from imagetool.commands.options import user_cache
from tests.support.commands import run
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file

IMAGE = '[image.{}]\nsource = "oci:layout:t"\nkernel = "none"\nsize = "64MiB"\n[image.{}.env]\nA = "{}"\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_layout(tmp_path / "layout", "t", [directory(b"etc") + file(b"etc/f", os.urandom(300_000)) + END])
    (tmp_path / "images.toml").write_text(IMAGE.format("a", "a", 1) + IMAGE.format("b", "b", 2))
    (tmp_path / "dodo.py").write_text("from imagetool.tasks.dodo import *\n")
    done = run("doit", "build", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def kept(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in (place / "cache").rglob("*")}


def test_a_project(place: Path) -> None:
    """A dry run removes nothing, one image leaves the other, all leave layouts and foreign files; a build makes it again."""
    (place / "cache/a/mine").write_text("precious")
    (place / "cache/b/.check-1").mkdir()
    before = kept(place)
    done = run("doit", "clean", "-n", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"would remove cache/disks; 0\.0[1-9] MB\n", done.stdout)
    assert kept(place) == before

    done = run("doit", "clean", "build:b", cwd=place)
    assert re.search(r"removed cache/disks/[0-9a-f]+; [0-9.]+ MB\n", done.stdout)
    assert "removed cache/b/: .check-1, artifact.json, disk, disk.json, " in done.stdout
    assert "cache/artifacts/b stays: b was published there" in done.stdout
    assert len(list((place / "cache/disks").iterdir())) == 1
    assert not (place / "cache/b").exists()
    assert "-- disk:a" in run("doit", "disk:a", cwd=place).stdout

    done = run("doit", "clean", cwd=place)
    assert re.search(r"\n[0-9.]*[1-9][0-9.]* MB freed\n", done.stdout)
    assert "Traceback" not in done.stderr
    assert {"cache/a/mine", "cache/artifacts/a/index.json"} <= kept(place)
    assert not {"cache/disks", "cache/indexes", "cache/guest", "cache/a/disk.json"} & kept(place)
    assert "nothing to remove" in run("doit", "clean", cwd=place).stdout
    assert run("doit", "build", cwd=place).returncode == 0


def test_a_users_cache(place: Path) -> None:
    cache = place / "own cache"

    def imagetool(*argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command with that cache."""
        return run("imagetool", *argv, cwd=place, ROOTDISK_CACHE=str(cache))

    assert imagetool("disk", "--size=64MiB", "oci:layout:t", "disk.ext4").returncode == 0
    (cache / "mine").write_text("precious")
    (cache / "kernels").symlink_to(place / "layout")
    done = imagetool("clean", "--dry-run", "--json")
    rows = json.loads(done.stdout)
    assert {Path(row["path"]).name for row in rows} == {"guest", "indexes", "kernels", "tmp"}
    assert all(row["bytes"] >= 0 for row in rows)
    assert (cache / "indexes").exists()
    done = imagetool("clean")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed {cache}/indexes; " in done.stdout
    assert done.stdout.endswith(" MB freed\n")
    assert set(os.listdir(cache)) == {"mine", ".lock"}
    assert (place / "layout/index.json").exists()
    assert imagetool("clean").stdout == f"nothing to remove from {cache}\n"


def test_a_cache_in_use_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTDISK_CACHE", str(place / "used"))
    cache = user_cache()
    (cache / "disks").mkdir()
    done = run("imagetool", "clean", cwd=place)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"imagetool: the cache {cache} is in use by ")
    assert (cache / "disks").exists()
