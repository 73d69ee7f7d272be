"""README's commands do what they say: every one that needs nothing of the reader's own is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.commands import ROOT

READERS_OWN = (":web", "registry.example", "doit clean")
# Sections that test_first_hour.py runs on a machine of its own.
ELSEWHERE = ("Install", "From your image to a booted disk")


def commands() -> list[str]:
    sections = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    text = "".join(section for section in sections if section.partition("\n")[0] not in ELSEWHERE)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not any(word in line for word in READERS_OWN)]


def test_there_are_some() -> None:
    assert len(commands()) >= 12


def test_they_run_one_after_the_other(demo: str, tmp_path: Path) -> None:
    """`demo` is what the commands look at; files that one of them makes new are removed before."""
    (ROOT / "cache/demo.tar").unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["ROOTDISK_STORE"] = str(tmp_path / "store")
    for command in commands():
        argv = ["sh", "-euc", command]
        done = subprocess.run(argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, command + done.stdout + done.stderr
