"""Parsers of one command, which each start builds, and of all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import imagetool.parser
import runner.parser
from rootdisk.cli.arguments import subparsers
from tests.support.commands import ROOT

TOOLS = {"imagetool": imagetool.parser, "runner": runner.parser}
COMMANDS = [
    (tool, name) for tool, module in TOOLS.items() for name in (*module.COMMANDS, *(["run"] * (tool == "runner")))
]


@pytest.mark.parametrize(("tool", "name"), COMMANDS)
def test_a_command_s_own_parser_says_what_the_whole_one_says(tool: str, name: str) -> None:
    """Also in its help and its errors."""
    own, whole = TOOLS[tool].parser(name), subparsers(TOOLS[tool].parser())[name]
    assert {*subparsers(own)} == ({"boot", "run"} if name in ("boot", "run") else {name})
    assert subparsers(own)[name].format_help() == whole.format_help()


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("word", ["", "frobnicate", "--help", "images.toml"])
def test_any_other_word_is_answered_with_all_commands(tool: str, word: str) -> None:
    own, whole = TOOLS[tool].parser(word), TOOLS[tool].parser()
    assert subparsers(own).keys() == subparsers(whole).keys()
    assert own.format_help() == whole.format_help()


@pytest.mark.parametrize(("tool", "name"), COMMANDS)
def test_help_says_what_a_command_does(tool: str, name: str) -> None:
    text = " ".join(subparsers(TOOLS[tool].parser(name))[name].format_help().split())
    does = TOOLS[tool].COMMANDS["boot" if name == "run" else name].help
    assert f"{does[0].upper()}{does[1:]}. " in text


@pytest.mark.parametrize("tool", TOOLS)
def test_help_needs_no_command_s_module(tool: str) -> None:
    code = (
        f"import atexit, sys, {tool}.cli; sys.argv[1:] = ['inspect', '--help']; "
        f"atexit.register(lambda: print([name for name in sys.modules if '.commands.' in name])); {tool}.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("tool", ["runner", "imagetool"])
def test_interrupted_while_modules_are_loaded(tool: str, tmp_path: Path) -> None:
    """Ctrl-C at once after the start ends it as later, without a traceback."""
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", tool, "-h"], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
