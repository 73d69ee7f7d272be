"""A disk at a registry that misbehaves on order, and servers that end with their test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from rootdisk.artifact.compressed import Content
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from runner.store.filling import DiskSource
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import ELF, VMLINUX, Sample, noise, publish, sample, with_boot
from tests.support.faults import FaultProxy
from tests.support.nbd import PATIENT, QUICK, Machine, end_servers
from tests.support.registry import RunningRegistry


@pytest.fixture(scope="session")
def made() -> Sample:
    """A disk of 11 MiB with a hole; its chunks do not compress."""
    return sample([*noise(40, 128 << 10), bytes(1 << 20), *noise(40, 128 << 10, seed=1), bytes(5000)])


@pytest.fixture(scope="session")
def registry(registry: RunningRegistry, made: Sample) -> RunningRegistry:
    publish(made, f"{registry.name}/lazy/a:v1", registry.options)
    return registry


@pytest.fixture
def booted(registry: RunningRegistry, made: Sample) -> Sample:
    """The disk with a kernel and a vmlinux, in two repositories."""
    booted = with_boot(made, VMLINUX, vmlinux=Content(Digest.of(ELF), len(ELF)))
    for name in ("booted", "other"):
        publish(booted, f"{registry.name}/lazy/{name}:v1", registry.options)
    return booted


@pytest.fixture
def quick() -> None:
    """Short deadlines for requests."""


@pytest.fixture
def source(request: pytest.FixtureRequest, nobody: None, store: Store, proxy: FaultProxy) -> DiskSource:
    """The source of the disk, with nothing of the disk in the store. Tests of faults have short deadlines."""
    options = QUICK if {"case", "quick"} & set(request.fixturenames) else PATIENT
    artifact = pull(store, parse_reference(f"{proxy.name}/lazy/a:v1"), options, Platform.host(), lazily=True)
    artifact.release()
    assert artifact.source is not None
    return artifact.source


@pytest.fixture
def boot(store: Store, source: DiskSource) -> Iterator[Callable[[], Machine]]:
    """Start a machine on the disk. All servers end with the test."""
    machines: list[Machine] = []

    def start() -> Machine:
        machines.append(Machine(store, source))
        return machines[-1]

    yield start
    for machine in machines:
        machine.close()
    for log in (store.root / "lazy").glob("*.log"):
        with contextlib.suppress(FileNotFoundError):  # an empty one, of a server that has just ended
            print(log.read_text())
    end_servers(store)
