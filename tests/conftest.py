"""Fixtures that several parts share, and the room that a whole run takes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.end_to_end.conftest import demo

__all__ = ["demo"]

# In the temporary directory. A whole run was seen to have 0.8 GB there; the nightly one has fresh machines of 4 GB too.
ROOM_GB = {"not nightly": 3, "nightly": 12}


def pytest_configure(config: pytest.Config) -> None:
    """Make the environment that of a fresh machine; refuse a whole run that would fill the disk."""
    os.environ.pop("PYTHONUNBUFFERED", None)  # it hides what is not flushed, and in which order
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
