"""Fixtures that several parts share, and the room that a whole run takes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.end_to_end.conftest import demo

__all__ = ["demo"]

# What a whole run has in the temporary directory at its fullest, and half as much again; nightly makes fresh machines too.
ROOM_GB = {"not nightly": 6, "nightly": 12}


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a whole run that would fill the disk."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    if not whole or config.option.collectonly or hasattr(config, "workerinput"):
        return
    basetemp = config.option.basetemp
    place = Path(basetemp).absolute().parent if basetemp else Path(tempfile.gettempdir())
    free_gb, needed = shutil.disk_usage(place).free >> 30, ROOM_GB.get(config.option.markexpr, max(ROOM_GB.values()))
    if free_gb < needed:
        raise pytest.UsageError(
            f"too little room: {place} has {free_gb} GB free, the tests need {needed} GB; set TMPDIR to another directory"
        )
