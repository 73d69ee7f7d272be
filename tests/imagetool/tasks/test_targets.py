"""Names in targets: which are pruned, which never move, and who wins if two jobs want one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imagetool.config import images
from imagetool.targets.open import open_target
from imagetool.targets.prune import version_order
from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference
from tests.support.commands import ROOT, run
from tests.support.layouts import write_layout
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.tars import END, directory, file

ORDERED = [
    "0.9",
    "1.0-dev1",
    "1.0-alpha",
    "1.0a2",
    "1.0-beta.2",
    "1.0-beta.11",
    "1.0-rc.1",
    "1.0",
    "1.0-slim",
    "1.0.1-rc1",
    "1.0.1",
    "v1.1",
    "1.2",
    "1.10-rc1",
    "1.10",
    "2024.1",
]


def test_pre_releases_are_older() -> None:
    assert sorted(sorted(ORDERED), key=version_order) == ORDERED
    assert version_order("v2") == version_order("2")
    assert version_order("1" + "0" * 5000) > version_order("9" * 5000) > version_order("007")  # int() would refuse


def project(place: Path, target: str, version: str, value: str) -> None:
    if not (place / "layout").exists():
        write_layout(place / "layout", "t", [directory(b"etc") + file(b"etc/f", b"1" * 9000) + END])
    (place / "dodo.py").write_text("from imagetool.tasks.dodo import *\n")
    (place / "images.toml").write_text(
        f'[image.app]\nsource = "oci:layout:t"\nkernel = "none"\nsize = "64MiB"\nplain_http = true\npublish = "{target}"\n'
        f'version = "{version}"\n[image.app.env]\nA = "{value}"\n'
    )


def doit(place: Path, *arguments: str) -> tuple[int, str]:
    done = run("doit", *arguments, cwd=place)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_prune_keeps_what_was_published_last(tmp_path: Path) -> None:
    for version in ("2.0", "1.10", "1.9"):
        project(tmp_path, "oci:out", version, version)
        assert doit(tmp_path, "build")[0] == 0
    for wrong in ("0", "-1", "x", "1.5", "²"):
        for command in (("prune", f"--keep={wrong}"), ("prune:app", f"--keep={wrong}")):
            status, said = doit(tmp_path, *command)
            assert status != 0
            assert "give the number of versions to keep, 1 or more" in said
        assert run("imagetool", "prune", f"--keep={wrong}", "oci:out", cwd=tmp_path).returncode == 2
    before = sum(path.stat().st_size for path in (tmp_path / "out/blobs/sha256").iterdir())
    status, said = doit(tmp_path, "prune", "--keep=2", "--delete")
    assert status == 0, said
    assert "ordered by the time they were published" in said
    assert "MB freed" in said
    assert {"1.10", "1.9"} == {tag for tag in tags(tmp_path / "out") if not tag.startswith("key-")}
    after = sum(path.stat().st_size for path in (tmp_path / "out/blobs/sha256").iterdir())
    assert after < before
    for version in ("1.10", "1.9"):
        assert run("imagetool", "ls", f"oci:out:{version}", "/etc", cwd=tmp_path).returncode == 0


def test_blobs_stay_while_somebody_writes(tmp_path: Path) -> None:
    """Whose manifest does not name them yet."""
    with_blob = open_target(parse_reference(f"oci:{tmp_path}/out"))
    other = open_target(parse_reference(f"oci:{tmp_path}/out"))
    from rootdisk.oci.documents import Descriptor, Digest

    with_blob.push_blob(Descriptor("x/y", Digest.of(b"new"), 3), lambda: iter([b"new"]))
    assert other.sweep() == 0
    with_blob.close()
    assert other.sweep() == 3
    other.close()


def tags(layout: Path) -> set[str]:
    target = open_target(parse_reference(f"oci:{layout}"))
    found = set(target.tags())
    target.close()
    return found


def test_a_version_in_a_layout_moves_by_force_only(tmp_path: Path) -> None:
    project(tmp_path, "oci:out", "1", "one")
    assert doit(tmp_path, "build")[0] == 0
    project(tmp_path, "oci:out", "1", "two")
    status, said = doit(tmp_path, "build")
    assert status != 0
    assert "raise the version, or move the tag with --force" in said
    assert doit(tmp_path, "publish:app", "--force")[0] == 0
    build = ("imagetool", "build", "--size=64MiB", "-e", "A=3", "oci:layout:t")
    done = run(*build, "oci:out:1", cwd=tmp_path, ROOTDISK_CACHE=str(tmp_path / "c"))
    assert done.returncode == 2
    assert "is" in done.stderr
    assert "--force" in done.stderr
    project(tmp_path, "oci:cache/mine", "1", "one")  # a layout in the project's cache is nobody else's
    assert doit(tmp_path, "build")[0] == 0
    project(tmp_path, "oci:cache/mine", "1", "two")
    assert doit(tmp_path, "build")[0] == 0


def test_what_is_gone_from_a_target_is_published_again(tmp_path: Path) -> None:
    project(tmp_path, "oci:out", "1", "one")
    assert doit(tmp_path, "build")[0] == 0
    (tmp_path / "out").rename(tmp_path / "gone")
    assert doit(tmp_path, "build")[0] == 0
    assert "1" in tags(tmp_path / "out")
    assert ".  " not in doit(tmp_path, "build")[1]


def test_explain_shows_another_version(tmp_path: Path) -> None:
    project(tmp_path, "oci:out", "1", "one")
    assert doit(tmp_path, "build")[0] == 0
    said = doit(tmp_path, "explain:app")[1]
    assert "published as" not in said
    project(tmp_path, "oci:out", "2", "one")
    said = doit(tmp_path, "explain:app")[1]
    assert "is current" in said
    assert re.search(r"  published as oci:\S*out:2, before as oci:\S*out:1\n", said)
    assert "publish: runs, as its settings have changed" in said


def test_two_images_with_one_target(tmp_path: Path) -> None:
    one = (
        '[image.a]\nsource = "oci:x:t"\npublish = "{}"\nversion = "{}"\n[image.b]\nsource = "oci:y:t"\npublish = "{}"\n'
    )
    for first, version, second in (
        ("oci:out", "1", "oci:./out"),
        ("r.example/a", "1", "r.example/a"),
        ("debian", "1", "docker.io/library/debian"),
    ):
        with pytest.raises(BadInput, match=r"images.toml:5:\d+: image.b: is published as .*:1, and so is a"):
            images.parse(one.format(first, version, second), tmp_path / "images.toml")
    assert len(images.parse(one.format("r.example/a", "2", "r.example/a"), tmp_path / "images.toml")) == 2
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(BadInput, match="and so is a"):
        images.parse(one.format("oci:real", "1", "oci:link"), tmp_path / "images.toml")


@needs_registry
def test_of_two_jobs_that_want_one_version_one_wins(tmp_path: Path, registry: RunningRegistry) -> None:
    for number in range(1):
        target = f"{registry.name}/race/{number}"
        for name in ("a", "b"):
            (tmp_path / f"{number}{name}").mkdir()
            project(tmp_path / f"{number}{name}", target, "1", name)
            assert doit(tmp_path / f"{number}{name}", "pack")[0] == 0
        jobs = [
            subprocess.Popen(
                [sys.executable, "-m", "doit", "build"],
                cwd=tmp_path / f"{number}{name}",
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for name in ("a", "b")
        ]
        said = [job.communicate(timeout=300)[0] for job in jobs]
        assert sorted(job.returncode for job in jobs) == [0, 1], said
        assert "raise the version" in said[0] + said[1]
