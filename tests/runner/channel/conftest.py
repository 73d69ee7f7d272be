"""The guest's init as a program of this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.guests import build_init

GUEST = ROOT / "imagetool/guest"


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The program, where every user can run it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        if not build_init(folder / "init", GUEST):
            pytest.skip("no gcc with sanitizers")
        yield folder / "init"
    finally:
        shutil.rmtree(folder)
