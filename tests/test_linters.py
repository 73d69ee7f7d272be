"""ruff, mypy and shellcheck find nothing; skipped where they are not installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

PYTHON = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])


@pytest.mark.parametrize("arguments", PYTHON, ids=["ruff check", "ruff format", "mypy"])
def test_python(arguments: list[str]) -> None:
    if importlib.util.find_spec(arguments[0]) is None:
        pytest.skip(f"{arguments[0]} is not installed")
    _run([sys.executable, "-m", *arguments])


def test_before_a_commit() -> None:
    """pre-commit's hooks are the same linters, from .venv, and nothing from the network."""
    yaml = pytest.importorskip("ruamel.yaml")
    (place,) = yaml.YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert place["repo"] == "local"
    assert [hook["language"] for hook in place["hooks"]] == ["system"] * len(place["hooks"])
    assert [hook["entry"].split() for hook in place["hooks"]] == [[".venv/bin/python", "-m", *tool] for tool in PYTHON]


def test_workflows_are_valid() -> None:
    """By the schema that GitHub publishes; what they run is what CONTRIBUTING says."""
    pytest.importorskip("check_jsonschema")
    files = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert [path.name for path in files] == ["fresh-machine.yml", "tests.yml"]
    _run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, files)])
    assert "run: .ci/run" in (ROOT / ".github/workflows/tests.yml").read_text()


def test_shell() -> None:
    scripts = ["quickstart", ".ci/run", "tests/support/fresh.sh"]
    for script in scripts:
        shell = (ROOT / script).read_text().splitlines()[0].split("/")[-1].split()[-1]
        _run([shell, "-n", script])
    if shutil.which("shellcheck"):
        _run(["shellcheck", *scripts])


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
