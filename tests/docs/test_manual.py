"""The manual pages: every command and option is in them, and groff has nothing to say."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import imagetool.parser
import runner.cli
from rootdisk.cli.arguments import subparsers
from tests.support.commands import ROOT

TOOLS = {"runner": runner.cli.parser(), "imagetool": imagetool.parser.parser()}


@pytest.mark.parametrize("name", TOOLS)
def test_every_command_and_option_is_in_it(name: str) -> None:
    page = (ROOT / f"docs/man/{name}.1").read_text("utf-8")
    for command, parser in subparsers(TOOLS[name]).items():
        if command != "run":  # another name of boot
            assert f'.SS "{name} {command}"' in page
        for flag in parser._option_string_actions:
            assert flag in ("-h", "--help") or "\\fB" + flag.replace("-", "\\-") + "\\fR" in page


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_accepts_it(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", f"docs/man/{name}.1"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 10_000


def test_they_are_in_the_wheel() -> None:
    """tests/test_packaging.py builds one; here is what it is told."""
    import tomllib

    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    assert told == {"share/man/man1": ["docs/man/runner.1", "docs/man/imagetool.1"]}
