"""`doit check`, and `check = true` as a gate: what is wrong with a disk is found before and after it is published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from imagetool.config import images
from rootdisk.errors import BadInput
from tests.support.commands import run
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file

PASSWD = file(b"etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:7:7::/:/bin/sh\n") + file(b"etc/group", b"app:x:7:\n")
LAYER = directory(b"etc") + PASSWD + directory(b"srv") + directory(b"opt") + file(b"opt/app", b"#!", mode=0o755)
RIGHT = {"Entrypoint": ["app"], "Env": ["PATH=/bin:/opt"], "WorkingDir": "/srv", "User": "app:app"}


def project(place: Path, config: dict[str, Any], more: str = "check = true\n") -> Path:
    write_layout(place / "layout", "t", [LAYER + file(b"opt/data", b"") + END], config)
    (place / "dodo.py").write_text("from imagetool.tasks.dodo import *\n")
    (place / "images.toml").write_text(
        f'[image.app]\nsource = "oci:layout:t"\nkernel = "none"\nsize = "64MiB"\npublish = ["oci:one", "oci:two"]\n{more}'
    )
    return place


def doit(place: Path, command: str) -> tuple[int, str]:
    done = run("doit", command, cwd=place, ROOTDISK_STORE=str(place / "store"))
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_right_disk_without_a_kernel(tmp_path: Path) -> None:
    place = project(tmp_path, RIGHT)
    status, said = doit(place, "build")
    assert status == 0, said
    assert "app: before it is published: e2fsck and our reader" in said
    assert not [name for name in os.listdir(place / "cache/app") if name.startswith(".check")]
    status, said = doit(place, "check")
    assert status == 0, said
    assert 'found nothing wrong; not booted, as kernel = "none", in 2 places' in said
    # By digest: whatever the tag names meanwhile. And every target is looked at.
    index = place / "two/index.json"
    index.write_text(index.read_text().replace('"1"', '"moved"'))
    assert doit(place, "check")[0] == 0
    largest = max((place / "two/blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    largest.rename(largest.with_name("kept"))
    status, said = doit(place, "check:app")
    assert status != 0
    assert "two" in said
    assert not [name for name in os.listdir(place / "cache/app") if name.startswith(".check")]
    assert not (place / "store").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Entrypoint": ["nothing"]}, "the program nothing is not on the disk"),
        ({"Entrypoint": ["/opt/data"]}, "the program /opt/data is not on the disk"),
        ({"Entrypoint": ["/opt"]}, "the program /opt is not on the disk"),
        ({"Env": ["PATH=/bin"]}, "the program app is not on the disk"),
        ({"WorkingDir": "/no/such"}, "the working directory /no/such is not on the disk"),
        ({"WorkingDir": "/opt/app"}, "the working directory /opt/app is not on the disk"),
    ],
)
def test_what_the_image_runs_is_not_there(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """And with `check = true` nothing is published."""
    place = project(tmp_path, {**RIGHT, **changes})
    status, said = doit(place, "build")
    assert status != 0
    assert words in said
    assert not (place / "one").exists()


def test_without_the_gate_it_is_found_afterwards(tmp_path: Path) -> None:
    place = project(tmp_path, {**RIGHT, "Entrypoint": ["nothing"]}, "")
    assert doit(place, "build")[0] == 0
    assert (place / "one/index.json").exists()
    status, said = doit(place, "check")
    assert status != 0
    assert "the program nothing is not on the disk" in said


def test_a_probe_needs_a_kernel_and_a_program(tmp_path: Path) -> None:
    for more, words in (
        ('kernel = "none"\nprobe = ["/app"]', r'probe: cannot run, as kernel = "none"'),
        ("probe = []", "names no program"),
        ('probe = [""]', "names no program"),
        ('probe = "app"', "expected a list of strings"),
        ("check = 1", "expected true or false"),
    ):
        with pytest.raises(BadInput, match=words):
            images.parse(f'[image.a]\nsource = "oci:x:t"\n{more}\n', tmp_path / "images.toml")
