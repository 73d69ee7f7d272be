"""`doit explain` and `imagetool explain`: which input has changed, what that changes, which tasks run, what it costs."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.support.commands import ROOT, run
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file

LAYERS = [
    directory(b"etc") + b"".join(file(b"etc/%d" % n, b"text %d" % n * 9000) for n in range(40)) + END,
    file(b"app", random.Random(1).randbytes(500_000)) + END,
]
TOP = file(b"top", b"top") + file(b"app", random.Random(2).randbytes(500_000)) + END


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "dodo.py", tmp_path)
    write_layout(tmp_path / "layout", "t", LAYERS)
    describe(tmp_path, 'A = "never shown"')
    return tmp_path


def describe(project: Path, env: str, more: str = "") -> None:
    text = f'[image.app]\nsource = "oci:layout:t"\nkernel = "none"\nsize = "64MiB"\n{more}\n[image.app.env]\n{env}\n'
    (project / "images.toml").write_text(text)


def doit(project: Path, *arguments: str) -> list[str]:
    done = run("doit", *arguments, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "never shown" not in done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith((".", "--"))]


def test_the_way_of_a_project(project: Path) -> None:
    assert "app: not built yet" in doit(project, "explain")
    doit(project, "build")
    said = doit(project, "explain:app")
    assert said[0].endswith("is current")
    assert [line.split(":")[1] for line in said[1:]] == [" does not run"] * 6
    describe(project, 'A = "never shown, again"\nB = "never shown"', "cpus = 2")
    write_layout(project / "layout", "t", [LAYERS[0], TOP])
    said = doit(project, "explain")
    assert said[:2] == ["app: changed since the last build", "  recipe.cpus: 1 -> 2 (the artifact's config alone)"]
    assert said[2] == "  recipe.env.A: another value (/.rootdisk/env)"
    assert said[3] == "  recipe.env.B: (none) -> (a value) (/.rootdisk/env)"
    assert said[4].startswith("  source: sha256:")
    assert said[5] == "    layer 1 is the same, layer 2 is not"
    assert said[-3:] == [
        "  disk: runs, as its settings have changed (cpus, env), source.json has changed",
        "  pack: runs if disk makes something else",
        "  publish: runs if disk makes something else",
    ]
    doit(project, "build")
    (project / "cache/app/disk").unlink()
    assert "  disk: runs, as what it made is not there" in doit(project, "explain")


def test_between_two_artifacts(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """And what it says is to be pulled is what the runner pulls."""
    doit(project, "build")
    old = project / "old"
    shutil.copytree(project / "cache/artifacts/app", old)
    describe(project, 'B = "never shown"', 'version = "2"')
    write_layout(project / "layout", "t", [LAYERS[0], TOP])
    doit(project, "build")
    done = run("imagetool", "explain", f"oci:{old}:1", "app", cwd=project)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "recipe.env.A: (a value) -> (none) (/.rootdisk/env)",
        "recipe.env.B: (none) -> (a value) (/.rootdisk/env)",
    ]
    assert lines[3:5] == ["  layer 1 is the same, layer 2 is not", "files: 1 added, 0 removed, 2 changed"]
    value = json.loads(run("imagetool", "explain", "--json", f"oci:{old}:1", "app", cwd=project).stdout)[0]
    assert min(value["chunks"].values()) > 2
    assert value["files"] == {"added": 1, "removed": 0, "changed": 2}
    assert "never shown" not in done.stdout + json.dumps(value)
    store = str(tmp_path_factory.mktemp("store"))
    for artifact in (f"oci:{old}:1", f"oci:{project}/cache/artifacts/app:2"):
        pulled = json.loads(run("runner", "pull", "--json", artifact, ROOTDISK_STORE=store).stdout)[0]
    # It asks for small holes between chunks too, rather than twice.
    assert 0.95 < pulled["fetched"] / value["pull_bytes"] < 1.05
    assert value["pull_bytes"] < value["whole_bytes"]


def test_the_same_and_names(project: Path) -> None:
    doit(project, "build")
    done = run("imagetool", "explain", "app", "app", cwd=project)
    assert (done.returncode, done.stdout[:10]) == (0, "the same: ")
    done = run("imagetool", "explain", "app", "ap", cwd=project)
    assert (done.returncode, done.stderr) == (2, "imagetool: images.toml has no image ap: did you mean app?\n")
