"""The server of a disk on a host whose disk gets full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from runner.lazy import agenda, reads
from runner.store import filling
from runner.store.filling import DiskSource
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import Sample
from tests.support.faults import ALWAYS, Fault, FaultProxy
from tests.support.mounts import mounted, needs_root
from tests.support.nbd import PATIENT, Machine, NbdError, server_of
from tests.support.registry import needs_registry
from tests.support.waiting import until

pytestmark = [needs_registry, needs_root, pytest.mark.root]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store on a file system that is smaller than the disk."""
    with mounted("tmpfs", tmp_path, 8 << 20) as place:
        monkeypatch.setenv("ROOTDISK_STORE", str(place / "store"))
        yield Store.open()


def test_the_disk_of_the_host_is_full(
    monkeypatch: pytest.MonkeyPatch,
    boot: Callable[[], Machine],
    store: Store,
    source: DiskSource,
    made: Sample,
    proxy: FaultProxy,
) -> None:
    """Reads of what is there go on, others fail with the reason, and the space is free when nobody needs the server."""
    monkeypatch.setattr(reads, "WAIT_S", 1.0)
    monkeypatch.setattr(agenda, "PAUSES_S", (0.2,))
    machine = boot()
    assert machine.client.read(0, 5000) == made.disk[:5000]
    until(lambda: "No space left" in getattr(filling.status(store, source.digest), "problem", ""))
    with pytest.raises(NbdError, match="Input/output error"):
        read_all(machine, made)
    assert machine.client.read(0, 5000) == made.disk[:5000]
    proxy.add(Fault("status", made.path, ALWAYS, status=404))  # the last problem is another one
    until(lambda: "404" in getattr(filling.status(store, source.digest), "problem", ""))
    machine.close()
    until(lambda: not server_of(store))
    proxy.faults.clear()
    assert not list((store.root / "disks").glob("*.partial"))
    with pytest.raises(RootdiskError, match="No space left"):
        pull(store, parse_reference(f"{proxy.name}/lazy/a:v1"), PATIENT, Platform.host())
    assert not list((store.root / "disks").glob("*.partial"))


def read_all(machine: Machine, made: Sample) -> None:
    for offset in range(0, len(made.disk) - 100, 128 << 10):
        assert machine.client.read(offset, 100) == made.disk[offset : offset + 100]
