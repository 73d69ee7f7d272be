"""Fixtures of imagetool's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.copies import copy_project


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A project with its own copy of the packages."""
    copy_project(tmp_path)
    return tmp_path
