"""The companion of a program that boots sandboxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.sandbox.starter import Starter
from tests.support.waiting import until


def test_a_companion_shows_nothing_of_its_programs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "T0KEN")
    starter = Starter()
    environment = Path(f"/proc/{starter._process.pid}/environ")
    try:
        until(lambda: b"T0KEN" not in environment.read_bytes())
        assert starter.is_alive
    finally:
        starter.close()
