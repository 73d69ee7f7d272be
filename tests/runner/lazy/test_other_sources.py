"""A server that cannot fetch, and who can: a newcomer, or a sandbox that is there; with other credentials, or from another registry."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from runner.lazy import reads
from runner.lazy.served import ServedDisk
from runner.sandbox.keeper.feed import Feed
from runner.store import filling
from runner.store.filling import DiskSource
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import Sample, publish
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.nbd import QUICK, Client, Machine, NbdError, server_of
from tests.support.registry import RunningRegistry, docker_config, needs_registry, run_registry
from tests.support.waiting import until

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]
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


class Kept:
    """A keeper's part for a sandbox, and the connection that its QEMU makes."""

    def __init__(self, store: Store, source: DiskSource, folder: Path) -> None:
        folder.mkdir()
        self.feed = Feed(store, ServedDisk(store, source), folder)
        self.said: list[str] = []
        self._has_ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.client = self._connect()

    def _run(self) -> None:
        while not self._has_ended:
            self.feed.accept()
            self.said += self.feed.hear()
            self.feed.connect()
            time.sleep(0.01)

    def _connect(self) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(str(self.feed.path))
        return Client(sock)

    def read(self, offset: int, length: int) -> bytes:
        """Read as QEMU does: again when there is another server."""
        while True:
            try:
                return self.client.read(offset, length)
            except OSError:
                self.client.close()
                with contextlib.suppress(OSError):  # that server ends as well
                    self.client = self._connect()

    def close(self) -> None:
        self.client.close()
        self._has_ended = True
        self._thread.join()
        self.feed.close()


@contextlib.contextmanager
def two(store: Store, proxy: FaultProxy, alive: FaultProxy, folder: Path) -> Iterator[tuple[Kept, Kept]]:
    """Sandboxes of two registries on one disk, whose server was started by the first."""
    proxy.pause_s = 0.05
    with contextlib.ExitStack() as stack:
        first = Kept(store, source_of(store, proxy.name), folder / "first")
        stack.enter_context(contextlib.closing(first))
        second = Kept(store, source_of(store, alive.name), folder / "second")
        stack.enter_context(contextlib.closing(second))
        yield first, second
        proxy.pause_s = 0
    until(lambda: not server_of(store))


def test_a_sandbox_that_is_there_takes_over(
    store: Store, made: Sample, proxy: FaultProxy, alive: FaultProxy, tmp_path: Path
) -> None:
    with two(store, proxy, alive, tmp_path) as (first, second):
        (before,) = server_of(store)
        proxy.add(Fault("status", "/blobs/", ALWAYS, status=403))
        assert first.read(9_000_000, 5000) == made.disk[9_000_000:9_005_000]
        assert second.read(8_000_000, 5000) == made.disk[8_000_000:8_005_000]
        assert before not in server_of(store)
        until(lambda: store.disk(first.feed._source.digest).exists(), 60)


def test_nobody_takes_over_who_cannot_fetch_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, store: Store, made: Sample, proxy: FaultProxy, alive: FaultProxy, tmp_path: Path
) -> None:
    """All are asked. The read fails after the time that is promised, and the server stays."""
    monkeypatch.setattr(reads, "WAIT_S", 2.0)
    chunk = made.index.chunks[60]
    proxy.wrong_at = alive.wrong_at = chunk.blob_offset + 1000
    with two(store, proxy, alive, tmp_path) as (first, second):
        servers = server_of(store)
        asked = len(alive.seen)
        with pytest.raises(NbdError, match="Input/output error"):
            first.client.read(chunk.offset, 100)
        assert server_of(store) == servers
        assert len(alive.seen) > asked
        assert second.read(0, 100) == made.disk[:100]


def test_servers_do_not_take_each_others_place_again_and_again(
    monkeypatch: pytest.MonkeyPatch, store: Store, made: Sample, proxy: FaultProxy, alive: FaultProxy, tmp_path: Path
) -> None:
    """A read would wait for ever, where each can fetch when it is asked and fails when it has taken over."""
    monkeypatch.setattr(reads, "WAIT_S", 2.0)
    with two(store, proxy, alive, tmp_path) as (first, _):
        (before,) = server_of(store)
        proxy.add(Fault("status", "/blobs/", ALWAYS, status=403))
        assert first.read(9_000_000, 100) == made.disk[9_000_000:9_000_100]
        until(lambda: before not in server_of(store))
        servers = server_of(store)
        proxy.faults.clear()
        alive.add(Fault("status", "/blobs/", ALWAYS, status=403))
        with pytest.raises(NbdError, match="Input/output error"):
            first.read(11_000_000, 100)
        assert server_of(store) == servers
