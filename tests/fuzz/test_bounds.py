"""The bounds are shown to hold: what each kind of fault looks like when it is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.support.commands import ROOT

BEGIN = """
import sys
from tests.fuzz import bounds
from rootdisk.errors import BadInput
bounds.SECONDS = 0.2
def refuse(text): raise BadInput(text)
def loop(data):
    while True: pass
bounds.limit()
print(bounds.attempt(lambda data: {call}, b""))
"""
CASES = {
    "1": "True",
    "refuse('no')": "False",
    "refuse('two\\nlines')": "Fault(kind=\"message with '\\\\n'\"",
    "refuse('\\ud800')": "Fault(kind=\"message with '\\\\ud800'\"",
    "{}['a']": "Fault(kind='KeyError'",
    "sys.exit(3)": "Fault(kind='SystemExit'",
    "loop(data)": "Fault(kind='TooSlow'",
    "bytes(400 << 20)": "Fault(kind='MemoryError'",
    "[bytes(1 << 20) for _ in range(400)]": "Fault(kind='MemoryError'",
}


@pytest.mark.parametrize("call", CASES)
def test_a_fault_is_found(call: str) -> None:
    argv = [sys.executable, "-c", BEGIN.format(call=call)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(CASES[call]), done.stdout + done.stderr


def test_a_process_that_stands_still_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "STILL_S", 1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert harness._watch(child, tmp_path / "now")
    finally:
        child.kill()
        child.communicate()


def test_a_process_that_dies_is_a_fault(tmp_path: Path) -> None:
    outcome = harness.run("no such target", tmp_path, count=1)
    assert outcome.faults
    assert "KeyError" in outcome.faults[0]
