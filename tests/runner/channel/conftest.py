"""The guest's init as a program of this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guests import build_init, can_sanitize


@pytest.fixture(scope="session")
def init() -> Iterator[Path]:
    """The program, where every user can run it."""
    if not can_sanitize():
        pytest.skip("no gcc with sanitizers")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        build_init(folder / "init")
        yield folder / "init"
    finally:
        shutil.rmtree(folder)
