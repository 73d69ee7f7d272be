"""`imagetool init`: what it writes is a description of the source, with its comments on or off."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from imagetool.config import images, schema
from tests.support.commands import run
from tests.support.layouts import write_layout
from tests.support.tars import END, file

CONFIG = {
    "Entrypoint": ["python3", "-m", 'a "quoted"\nname\x7f'],
    "Cmd": ["--serve"],
    "Env": ["PATH=/bin", "EVIL\n[image.b]=x"],
    "User": "app:www",
    "WorkingDir": "/srv",
    "ExposedPorts": {"8080/tcp": {}},
    "Volumes": {"/var/lib/data": {}, "/srv/x\ny": {}},
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    write_layout(tmp_path / "layout", "2.0", [file(b"f") + END], CONFIG)
    return f"oci:{tmp_path}/layout:2.0"


def test_it_builds_the_source_as_it_is(tmp_path: Path, source: str) -> None:
    place = tmp_path / "project"
    place.mkdir()
    path = place / "images.toml"
    done = run("imagetool", "init", "--platform", "linux/amd64", source, str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    (image,) = images.load(path)
    plain = f'[image.layout]\nsource = "oci:{tmp_path}/layout:2.0"\n'
    assert image.source.path is not None
    assert image.source.path.resolve() == tmp_path / "layout"
    (expected,) = images.parse(plain, path)
    assert (image.env, image.process, image.owners, image.size) == (
        *(expected.env, expected.process, expected.owners),
        expected.size,
    )


def test_its_comments_are_right(tmp_path: Path, source: str) -> None:
    text = run("imagetool", "init", "--platform", "linux/amd64", source, "-", cwd=tmp_path).stdout
    on = re.sub(r'^# (?=\w+ = |\[|"/)', "", text, flags=re.MULTILINE)
    (image,) = images.parse(on, tmp_path / "images.toml")
    assert image.version == "2.0"
    assert image.process.to_json() == {
        "entrypoint": CONFIG["Entrypoint"],
        "cmd": CONFIG["Cmd"],
        "user": "app:www",
    }
    assert [(owner.path, owner.user, owner.group) for owner in image.owners] == [
        ("/srv/x\ny", "app", "www"),
        ("/var/lib/data", "app", "www"),
    ]
    assert image.env == ("NAME=value",)
    assert image.files[0].path == "/etc/motd"
    assert "8080/tcp" in text
    assert "/bin" not in text.partition("[image.layout.env]")[0]  # names of variables, no values


def test_it_does_not_overwrite(tmp_path: Path, source: str) -> None:
    (tmp_path / "images.toml").write_text("mine")
    done = run("imagetool", "init", "--platform", "linux/amd64", source, "images.toml", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "images.toml is there already" in done.stderr
    assert (tmp_path / "images.toml").read_text() == "mine"


def test_the_schema_is_written() -> None:
    assert json.loads(run("imagetool", "schema").stdout) == json.loads(schema.PATH.read_text())
