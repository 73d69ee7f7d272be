"""What all tests from image to exit status share: the demo's source image, a project that builds from it, a runner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner, run
from tests.support.registry import RunningRegistry, run_registry


@pytest.fixture(scope="session")
def demo() -> str:
    """The demo's artifact, as `./quickstart` makes it."""
    done = run("doit", "build", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"oci:{ROOT}/cache/artifacts/demo:1"


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def project(tmp_path: Path, demo: str) -> Path:
    """An empty project: images.toml is the test's to write; the kernel's package need not be fetched again."""
    place = tmp_path / "a project"
    (place / "cache").mkdir(parents=True)
    shutil.copy(ROOT / "dodo.py", place)
    (place / "cache/kernels").symlink_to(ROOT / "cache/kernels")
    return place


@pytest.fixture(scope="session")
def source(demo: str) -> str:
    """The demo's source image."""
    return f"oci:{ROOT}/cache/demo/source:latest"
