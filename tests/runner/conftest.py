"""A store of the test's own, and a small artifact for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rootdisk.oci.repository import RegistryOptions
from runner.store.store import Store
from tests.support.artifacts import publish, small


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small artifact in an OCI layout."""
    reference = f"oci:{tmp_path_factory.mktemp('layout')}:1"
    publish(small(), reference, RegistryOptions())
    return reference


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    return Store.open()
