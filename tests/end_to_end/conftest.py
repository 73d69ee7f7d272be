"""What all tests from image to exit status share: the demo's source image, a project that builds from it, a runner."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rootdisk.durable import data_runs
from tests.support.registry import RunningRegistry, run_registry

ROOT = Path(__file__).parents[2]


def run(
    *argv: str, cwd: Path = ROOT, timeout: float = 300, binary: bool = False, **env: str
) -> subprocess.CompletedProcess[Any]:
    return subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=not binary,
        timeout=timeout,
    )


@dataclass(frozen=True)
class Runner:
    """The command, with a store of its own."""

    store: Path
    defaults: tuple[str, ...] = ()

    def __call__(
        self, command: str, *arguments: str, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return run(
            "runner", command, *self.defaults, *arguments, timeout=timeout, ROOTDISK_STORE=str(self.store), **env
        )

    def boot(
        self, artifact: str, script: str, *options: str, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """A shell script in a sandbox."""
        return self("boot", "--entrypoint", "/bin/sh", *options, artifact, "--", "-c", script, timeout=timeout, **env)

    def digests(self) -> dict[str, str]:
        """Of every disk in the store: where it has data, and which."""
        found = {}
        for path in (self.store / "disks").glob("*.raw"):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for start, end in data_runs(file.fileno()):
                    digest.update(f"{start} {end} ".encode())
                    for at in range(start, end, 1 << 20):
                        digest.update(os.pread(file.fileno(), min(1 << 20, end - at), at))
            found[path.name] = digest.hexdigest()
        return found


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
