"""Fixtures that several parts share, and the room that a whole run takes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner, run
from tests.support.compilers import keep_inits
from tests.support.faults import FaultProxy, run_faults
from tests.support.processes import start_with_default_signals
from tests.support.registry import RunningRegistry, be_nobody, run_registry

# In the temporary directory. A whole run was seen to have 0.8 GB there; the nightly one has fresh machines of 4 GB too.
ROOM_GB = {"not nightly": 3, "nightly": 12}


def pytest_configure(config: pytest.Config) -> None:
    """Make the environment that of a fresh machine; refuse a whole run that would fill the disk."""
    os.environ.pop("PYTHONUNBUFFERED", None)  # it hides what is not flushed, and in which order
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every one of our programs would be compiled again
    sys.dont_write_bytecode = False
    os.environ.setdefault("ROOTDISK_TEMPLATES", "0")  # a template costs a boot more; tests of templates turn them on
    start_with_default_signals()
    if not hasattr(config, "workerinput"):  # workers have the environment of the first process
        folder = Path(tempfile.mkdtemp(prefix="rootdisk-compilers-"))
        config.add_cleanup(lambda: shutil.rmtree(folder))
        keep_inits(folder)
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


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Undo what a command that a test runs in this process leaves in it: variables, working directory, umask, signals.

    `imagetool doit` sets all of them, as it otherwise has a process of its own.
    """
    variables, folder, umask = os.environ.copy(), Path.cwd(), os.umask(0o077)
    os.umask(umask)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    os.umask(umask)
    os.chdir(folder)
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


@pytest.fixture(scope="session")
def demo() -> str:
    """The demo's artifact, as `./quickstart` makes it."""
    done = run("doit", "build", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"oci:{ROOT}/cache/artifacts/demo:1"


@pytest.fixture(scope="session")
def source(demo: str) -> str:
    """The demo's source image."""
    return f"oci:{ROOT}/cache/demo/source:latest"


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """The command, with a store that a whole session shares."""
    return Runner(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def proxy(registry: RunningRegistry) -> Iterator[FaultProxy]:
    """The registry behind something that misbehaves on order."""
    with run_faults(registry.name) as proxy:
        yield proxy


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without credentials, proxies and settings."""
    be_nobody(monkeypatch, tmp_path)
