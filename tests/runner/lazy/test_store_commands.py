"""Commands on a store with a disk that is not complete: each says what is there, and removes it if it is told to."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from runner.store.filling import DiskSource
from runner.store.store import Store
from tests.support.commands import Runner
from tests.support.faults import FaultProxy
from tests.support.nbd import Machine, server_of
from tests.support.registry import needs_registry
from tests.support.waiting import until

pytestmark = needs_registry
Boot = Callable[[], Machine]


@pytest.fixture
def runner(store: Store) -> Runner:
    return Runner(store.root)


@pytest.fixture
def name(store: Store, source: DiskSource, boot: Boot, proxy: FaultProxy) -> str:
    """A disk that is slowly filled, without a sandbox."""
    proxy.pause_s = 0.1
    machine = boot()
    machine.read(0, 100)
    until(lambda: list((store.root / "names").iterdir()))
    proxy.pause_s = 1  # it takes a minute
    machine.close()
    return f"{proxy.name}/lazy/a:v1"


def test_a_disk_that_is_being_fetched(runner: Runner, name: str) -> None:
    (row,) = json.loads(runner("images", "--json").stdout)
    assert (row["reference"], row["complete"]) == (name, False)
    assert ", incomplete" in runner("images").stdout
    assert runner("verify").stdout.endswith(", 0 damaged\n")
    done = runner("boot", "--plain-http", "--pull", "never", name)
    assert (done.returncode, done.stderr) == (125, f"runner: {name} is only partly in the store: runner pull {name}\n")
    assert runner("prune").stdout == "freed 0.0 MB in 0 files\n"
    refused = runner("rmi", name)
    assert refused.stderr == f"runner: {name} is being fetched: to end that: runner rmi --force {name}\n"
    assert refused.returncode == 125
    assert server_of(Store(runner.store))
    removed = runner("rmi", "--force", name)
    assert removed.returncode == 0, removed.stderr
    assert f"untagged {name}" in removed.stdout
    assert json.loads(runner("images", "--json").stdout) == []
    for folder in ("blobs", "disks", "names"):
        assert os.listdir(runner.store / folder) == [], folder
    until(lambda: not server_of(Store(runner.store)))


def test_a_fetch_that_was_interrupted(runner: Runner, name: str, store: Store) -> None:
    (server,) = server_of(store)
    os.kill(server, signal.SIGKILL)
    until(lambda: not server_of(store))
    (row,) = json.loads(runner("images", "--json").stdout)
    assert not row["complete"]
    assert row["stored_bytes"]
    done = runner("rmi", name)
    assert done.returncode == 0, done.stderr
    assert "removed" in done.stdout
    for folder in ("blobs", "disks", "names"):
        assert os.listdir(runner.store / folder) == [], folder


def test_what_a_sandbox_reads_from_is_not_ended(runner: Runner, name: str, boot: Boot, proxy: FaultProxy) -> None:
    """`rmi --force` removes the name; the files go when no sandbox needs them."""
    machine = boot()
    machine.read(0, 100)
    (server,) = server_of(Store(runner.store))
    done = runner("rmi", "--force", name)
    assert done.returncode == 0, done.stderr
    assert "removed" not in done.stdout
    assert os.listdir(runner.store / "names") == []
    proxy.pause_s = 0
    assert machine.client.read(9_000_000, 100)
    assert server_of(Store(runner.store)) == [server]
