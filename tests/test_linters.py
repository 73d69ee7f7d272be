"""ruff, mypy and shellcheck find nothing; skipped where they are not installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "arguments",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_python(arguments: list[str]) -> None:
    if importlib.util.find_spec(arguments[0]) is None:
        pytest.skip(f"{arguments[0]} is not installed")
    _run([sys.executable, "-m", *arguments])


def test_shell() -> None:
    scripts = ["quickstart", ".ci/run"]
    for script in scripts:
        _run(["sh", "-n", script])
    if shutil.which("shellcheck"):
        _run(["shellcheck", *scripts])


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
