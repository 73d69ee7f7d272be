"""The Python programs of the documents run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT, Runner
from tests.support.pages import blocks

PROGRAMS = [block.text for block in blocks("howto/agents.md") if block.language == "python"]
OUTPUT = [
    "0 b'done\\n'\nb'6\\n'\nexec: the program did not end within 1 s, and was killed\n",
    "['0\\n', '1\\n']\n",
    "('stdout', b'a line\\n')\n0\n",
    "True\n",
]


@pytest.mark.vm
@pytest.mark.parametrize("number", range(len(OUTPUT)))
def test_a_program(number: int, demo: str, runner: Runner) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[number]],
        cwd=ROOT,
        env={**os.environ, "ROOTDISK_STORE": str(runner.store)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stdout, done.returncode) == (OUTPUT[number], 0), done.stderr


def test_each_is_run() -> None:
    assert len(PROGRAMS) == len(OUTPUT)
