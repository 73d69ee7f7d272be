"""A project for tests from image to exit status."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.commands import ROOT


@pytest.fixture
def project(tmp_path: Path, demo: str) -> Path:
    """An empty project: images.toml is the test's to write; the kernel's package need not be fetched again."""
    place = tmp_path / "a project"
    (place / "cache").mkdir(parents=True)
    shutil.copy(ROOT / "dodo.py", place)
    (place / "cache/kernels").symlink_to(ROOT / "cache/kernels")
    return place
