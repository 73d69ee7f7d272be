"""A project and sandboxes for tests from image to exit status."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner


@pytest.fixture
def project(tmp_path: Path, demo: str) -> Path:
    """An empty project: images.toml is the test's to write; the kernel's package need not be fetched again."""
    place = tmp_path / "a project"
    (place / "cache").mkdir(parents=True)
    shutil.copy(ROOT / "dodo.py", place)
    (place / "cache/kernels").symlink_to(ROOT / "cache/kernels")
    return place


@pytest.fixture
def empty_runner(tmp_path: Path) -> Iterator[Runner]:
    """The command, with a store that has nothing."""
    runner = Runner(tmp_path / "store")
    yield runner
    _remove_sandboxes(runner)


@pytest.fixture(autouse=True)
def _sandboxes_as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the sandboxes that a test leaves in the store of the session, as one does that fails."""
    if "runner" not in request.fixturenames:
        yield
        return
    runner: Runner = request.getfixturevalue("runner")
    before = _sandboxes(runner)
    templates = os.environ["ROOTDISK_TEMPLATES"]
    os.environ["ROOTDISK_TEMPLATES"] = "1"  # as users have it; in a store that lives for one test it only costs a boot
    yield
    os.environ["ROOTDISK_TEMPLATES"] = templates
    _remove_sandboxes(runner, but=before)


def _remove_sandboxes(runner: Runner, but: Set[str] = frozenset()) -> None:
    if left := sorted(_sandboxes(runner) - but):
        runner("rm", "--force", *left)


def _sandboxes(runner: Runner) -> set[str]:
    folder = runner.store / "sandboxes"
    return {name for name in os.listdir(folder) if not name.startswith(".")} if folder.exists() else set()
