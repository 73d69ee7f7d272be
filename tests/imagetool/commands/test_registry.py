"""push, pull, tags, rm and discover: with a real registry, and with layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rootdisk import __version__
from tests.support.commands import run
from tests.support.layouts import write_layout
from tests.support.registry import RunningRegistry, run_registry
from tests.support.tars import END, file


def test_the_life_of_an_image(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_layout(tmp_path / "layout", "t", [file(b"f", b"data") + END])
    (tmp_path / "sbom.json").write_text("{}")
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        _live(registry, tmp_path)


def _live(registry: RunningRegistry, place: Path) -> None:
    name = f"{registry.name}/team/web"

    def tool(*words: str) -> str:
        done = run("imagetool", "--plain-http", *words, cwd=place)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    pushed = json.loads(tool("push", "--json", "oci:layout:t", f"{name}:1"))
    digest = pushed[0]["digest"]
    assert tool("push", "oci:layout:t", f"{name}:2").split()[0] == digest
    assert tool("tags", name) == "1\n2\n"
    assert json.loads(tool("tags", name, "--json")) == [{"tag": t, "digest": digest} for t in ("1", "2")]
    assert tool("discover", f"{name}:1") == f"nothing is attached to {digest}\n"
    attached = tool("attach", "--type", "application/spdx+json", f"{name}:1", "sbom.json").strip()
    (row,) = json.loads(tool("discover", "--json", f"{name}:1"))
    assert (row["digest"], row["type"]) == (attached, "application/spdx+json")
    assert tool("pull", f"{name}:1") == f"{digest} oci:web:1\n"
    assert tool("tags", "oci:web") == "1\n"
    tool("attach", "--type", "application/spdx+json", "oci:web:1", "sbom.json")
    assert "application/spdx+json" in tool("discover", "oci:web:1")
    refused = run("imagetool", "--plain-http", "rm", f"{name}:1", cwd=place)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "is also tagged 2" in refused.stderr
    tool("copy", "oci:web:1", "oci:web:key-0123456789abcdef0123456789abcdef")  # as a build publishes it
    tool("rm", "oci:web:1")
    assert tool("tags", "oci:web") == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["push", "oci:a:1", "oci:b:1"], "TO is registry/repository:tag"),
        (["pull", "oci:a:1"], "FROM is registry/repository:tag"),
        (["tags", "oci:none"], "is not there"),
        (["tags", "registry.example/a:1"], "names one tag"),
        (["rm", "oci:none:1"], "is not there"),
        (["--debug", "lss", "X"], "did you mean ls?"),
        (["ls"], "missing: ARTIFACT|FILE"),
        (["prune", "--keep", "0", "oci:none"], "1 or more"),
        (["doit", "--set", "=secret", "build"], "--set '=': write --set NAME=VALUE"),
        (["doit", ""], "a word is empty"),
        (["map", "oci:none:1", "-o", ""], "--output: the name of a file is empty"),
    ],
)
def test_errors_are_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = run("imagetool", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_version() -> None:
    assert run("imagetool", "--version").stdout == f"imagetool {__version__}\n"
