"""A server that cannot fetch, and a newcomer who can: with other credentials, or from another registry."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from runner.store import filling
from runner.store.filling import DiskSource
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import Sample, publish
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.nbd import QUICK, Machine, server_of
from tests.support.registry import RunningRegistry, docker_config, needs_registry, run_registry
from tests.support.waiting import until

pytestmark = needs_registry
USER = ("ann", "secret-8")


def source_of(store: Store, name: str) -> DiskSource:
    artifact = pull(store, parse_reference(f"{name}/lazy/a:v1"), QUICK, Platform.host(), lazily=True)
    artifact.release()
    assert artifact.source is not None
    return artifact.source


def problem(store: Store, source: DiskSource) -> str:
    status = filling.status(store, source.digest)
    return status.problem if status is not None else ""


@pytest.fixture
def alive(registry: RunningRegistry) -> Iterator[FaultProxy]:
    """The registry by another name."""
    with run_faults(registry.name) as alive:
        yield alive


@pytest.fixture
def stuck(nobody: None, store: Store, proxy: FaultProxy) -> Iterator[Machine]:
    """A machine that waits, because its registry gives nothing any more."""
    source = source_of(store, proxy.name)
    proxy.add(Fault("status", "/blobs/", ALWAYS, status=403))
    with contextlib.closing(Machine(store, source)) as machine:
        machine.client.ask(7_000_000, 5000)
        until(lambda: "403" in problem(store, source))
        yield machine
    until(lambda: not server_of(store))


def is_read_at_last(machine: Machine, made: Sample) -> bool:
    """The read of a machine whose server has ended, as QEMU repeats it."""
    return machine.read(7_000_000, 5000) == made.disk[7_000_000:7_005_000]


def test_a_sandbox_of_another_registry(stuck: Machine, store: Store, made: Sample, alive: FaultProxy) -> None:
    source = source_of(store, alive.name)
    with contextlib.closing(Machine(store, source)) as machine:
        assert machine.client.read(8_000_000, 5000) == made.disk[8_000_000:8_005_000]
        assert is_read_at_last(stuck, made)
        assert len(server_of(store)) == 1
        until(lambda: store.disk(source.digest).exists())


def test_a_pull_from_another_registry(stuck: Machine, store: Store, made: Sample, alive: FaultProxy) -> None:
    pull(store, parse_reference(f"{alive.name}/lazy/a:v1"), QUICK, Platform.host()).release()
    assert store.disk(stuck.source.digest).read_bytes() == made.disk
    assert is_read_at_last(stuck, made)


def test_who_cannot_fetch_either_changes_nothing(stuck: Machine, store: Store, proxy: FaultProxy) -> None:
    (pid,) = server_of(store)
    with contextlib.closing(Machine(store, stuck.source)):
        assert server_of(store) == [pid]
    lock = filling.take_over(stuck.server)  # it would have
    assert lock is not None
    os.close(lock)


def test_other_credentials(
    tmp_path: Path, nobody: None, store: Store, made: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has those of who started it: another user's file, or one whose password was changed."""
    with run_registry(tmp_path / "registry", password=USER) as registry:
        docker_config(tmp_path / "docker", **{registry.name: USER})
        publish(made, f"{registry.name}/lazy/a:v1", registry.options)
        source = source_of(store, registry.name)
        right, wrong = tmp_path / "docker", docker_config(tmp_path / "wrong", **{registry.name: ("ann", "other")})
        monkeypatch.setenv("DOCKER_CONFIG", str(wrong))
        with contextlib.closing(Machine(store, source)) as first:
            first.client.ask(7_000_000, 5000)
            until(lambda: "401" in problem(store, source))
            monkeypatch.setenv("DOCKER_CONFIG", str(right))
            with contextlib.closing(Machine(store, source)) as second:
                assert second.client.read(8_000_000, 5000) == made.disk[8_000_000:8_005_000]
                assert is_read_at_last(first, made)
        until(lambda: store.disk(source.digest).exists())
        until(lambda: not server_of(store))
