"""What happens around a disk's server: one that hangs, one that is killed while a machine gets its file, a registry that moves."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zstandard

from rootdisk.errors import Busy, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from runner.commands import listing
from runner.lazy import agenda, start
from runner.lazy.served import ServedDisk
from runner.lazy.start import attach
from runner.sandbox.state import State
from runner.sandbox.upkeep.removal import find, remove
from runner.store import filling
from runner.store.filling import DiskSource, Silent
from runner.store.images import images
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import Sample
from tests.support.commands import Runner
from tests.support.disks import needs_root
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.nbd import PATIENT, QUICK, Machine, server_of
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.serving import mirrored, serving
from tests.support.waiting import until

UNUSED_UID = 1_900_000_001

pytestmark = needs_registry
Boot = Callable[[], Machine]


def test_a_server_that_hangs_is_shown_as_such(
    monkeypatch: pytest.MonkeyPatch, boot: Boot, store: Store, source: DiskSource, made: Sample
) -> None:
    """`ps` asks it once for all its sandboxes."""
    machine = boot()
    monkeypatch.setattr(listing, "_ANSWER_S", 0.2)
    asked: list[DiskSource] = []
    connect = filling.connect

    def counted(*given: Any) -> socket.socket | None:
        asked.append(source)
        return connect(*given)

    monkeypatch.setattr(filling, "connect", counted)
    spec = SimpleNamespace(disk=source.digest.hex)
    rows = [cast(State, SimpleNamespace(name=name, running=True, text="running", spec=spec)) for name in "abc"]
    (server,) = server_of(store)
    os.kill(server, signal.SIGSTOP)
    try:
        fills = listing._fills(store, rows)
    finally:
        os.kill(server, signal.SIGCONT)
    assert fills == dict.fromkeys("abc", Silent())
    assert len(asked) == 1
    assert listing.fill_field(fills["a"]) == {"fill": {"problem": "the server of the disk does not answer"}}
    assert listing._state(rows[0], fills["a"]) == "running, waits for its disk"
    assert machine.client.read(0, 4096) == made.disk[:4096]
    assert isinstance(filling.look(store, source.digest), filling.FillStatus)


def test_the_registry_comes_back_at_another_address(
    monkeypatch: pytest.MonkeyPatch,
    nobody: None,
    store: Store,
    registry: RunningRegistry,
    made: Sample,
    tmp_path: Path,
) -> None:
    """A read waits meanwhile. The name is looked up again."""
    monkeypatch.setattr(agenda, "PAUSES_S", (0.2,))
    here = tmp_path / "port"
    look_up = socket.getaddrinfo

    def moved(host: bytes | str, port: int, *given: Any, **more: Any) -> Any:
        """Look up the name in a file: the server is another process."""
        is_it = host == b"registry.test"
        return look_up("127.0.0.1" if is_it else host, int(here.read_text()) if is_it else port, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", moved)
    with run_faults(registry.name) as first:
        here.write_text(first.name.rpartition(":")[2])
        artifact = pull(store, parse_reference("registry.test:80/lazy/a:v1"), QUICK, Platform.host(), lazily=True)
        artifact.release()
        assert artifact.source is not None
        first.pause_s = 0.05
        machine = Machine(store, artifact.source)
        machine.client.ask(5_000_000, 4096)
    machine.client.ask(9_000_000, 4096, 2)
    with run_faults(registry.name) as second:
        here.write_text(second.name.rpartition(":")[2])
        for _ in range(2):
            cookie, data = machine.client.answer({1: 4096, 2: 4096})
            offset = {1: 5_000_000, 2: 9_000_000}[cookie]
            assert data == made.disk[offset : offset + 4096]
        until(lambda: store.disk(artifact.source.digest).exists())  # type: ignore[union-attr]
        machine.close()
        until(lambda: not server_of(store))


def test_a_disk_that_is_damaged_while_machines_read_it(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """Bytes of the partial file are changed by something else: no chunk is believed that was not verified by this server."""
    proxy.pause_s = 0.02
    boot().read(0, 100)
    for pid in server_of(store):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not server_of(store))
    with store.partial(source.digest).open("r+b") as file:
        file.write(b"\xff" * 4096)
    server, _ = attach(store, source)
    server.close()
    machine = boot()
    assert machine.client.read(0, 8192) == made.disk[:8192]


def test_a_registry_that_fails_with_many_reads_waiting(
    monkeypatch: pytest.MonkeyPatch, boot: Boot, made: Sample, proxy: FaultProxy
) -> None:
    """All are answered when it is back."""
    monkeypatch.setattr(agenda, "PAUSES_S", (0.2,))
    proxy.add(Fault("reset", made.path, ALWAYS, after=100))
    machine = boot()
    offsets = {number: number * 300_000 for number in range(1, 31)}
    for number, offset in offsets.items():
        machine.client.ask(offset, 1000, number)
    proxy.faults.clear()
    for _ in offsets:
        number, data = machine.client.answer(dict.fromkeys(offsets, 1000))
        assert data == made.disk[offsets[number] : offsets[number] + 1000]


def test_nothing_is_filled_if_reads_are_recorded(
    store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """Not even before the machine reads: a chunk as proof, and what is read."""
    proxy.pause_s = 0.01
    disk = ServedDisk(store, source)
    record = os.memfd_create("reads")
    disk.record_reads(record)
    server, _ = attach(store, source)
    server.close()
    until(lambda: (status := filling.status(store, source.digest)) is not None and status.filled_bytes)
    assert disk.read(5_000_000, 100) == made.disk[5_000_000:5_000_100]
    status = filling.status(store, source.digest)
    assert status is not None
    assert status.filled_bytes <= 3 * (128 << 10)
    disk.close()
    until(lambda: not server_of(store))
    assert not store.disk(source.digest).exists()


def test_a_server_of_another_version(
    monkeypatch: pytest.MonkeyPatch, boot: Boot, store: Store, source: DiskSource, made: Sample
) -> None:
    """It goes on for those who know it. Others are told at once, and not that it hangs."""
    machine = boot()
    monkeypatch.setattr(start, "_REFUSED_S", 0.3)
    with monkeypatch.context() as newer:
        newer.setattr(filling, "VERSION", 2)
        with pytest.raises(RootdiskError, match="is of another version: wait"):
            attach(store, source)
    assert machine.client.read(0, 4096) == made.disk[:4096]
    assert len(server_of(store)) == 1


def test_a_fetcher_dies_by_a_mistake_of_ours(
    monkeypatch: pytest.MonkeyPatch, boot: Boot, store: Store, made: Sample, proxy: FaultProxy, tmp_path: Path
) -> None:
    """The server ends with it, so no read waits for a thread that is gone; the next one answers."""
    proxy.pause_s = 0.005
    machine = boot()
    machine.read(0, 100)
    for pid in server_of(store):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not server_of(store))
    left = tmp_path / "times"
    left.write_text("xx")
    make = zstandard.ZstdDecompressor

    def broken(*given: Any, **more: Any) -> Any:
        """Fail as long as the file, which all servers share, says so."""
        if times := left.read_text():
            left.write_text(times[1:])
            raise AssertionError("a mistake")
        return make(*given, **more)

    monkeypatch.setattr(zstandard, "ZstdDecompressor", broken)
    assert machine.read(5_000_000, 5000) == made.disk[5_000_000:5_005_000]
    assert not left.read_text()
    assert len(server_of(store)) == 1
    assert "AssertionError: a mistake" in (store.root / "lazy" / f"{machine.source.digest.hex}.log").read_text()


def test_nobody_waits_for_a_server_that_hangs_without_end(
    monkeypatch: pytest.MonkeyPatch, boot: Boot, store: Store, source: DiskSource, proxy: FaultProxy
) -> None:
    """A pull, a start and `rmi --force` say which process it is, and nothing is removed."""
    proxy.pause_s = 0.05
    boot().read(0, 100)
    disk = ServedDisk(store, source)
    monkeypatch.setattr(filling, "ANSWER_S", 0.3)
    monkeypatch.setattr(filling, "_SILENT_S", 0.3)
    (server,) = server_of(store)
    name = str(source.reference)
    chosen = find(images(store), name, None)
    os.kill(server, signal.SIGSTOP)
    try:
        for wait in (
            lambda: pull(store, source.reference, source.options, Platform.host()),
            lambda: disk.read(9_000_000, 100),
            lambda: attach(store, source, 1.0),
            lambda: remove(store, chosen, force=True),
        ):
            with pytest.raises(Busy, match="does not answer") as caught:
                wait()
            assert f"{source.digest.hex}.lock" in (caught.value.hint or "")
    finally:
        os.kill(server, signal.SIGCONT)
    assert [image.reference for image in images(store)] == [name]
    disk.close()


@pytest.mark.parametrize("is_honest", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["honest", "wrong"])
def test_runner_serve_as_the_mirror(
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    source: DiskSource,
    made: Sample,
    proxy: FaultProxy,
    tmp_path: Path,
    is_honest: bool,
) -> None:
    """It gives parts of a disk, so another host starts from it before it has the disk; the origin gives what is wrong there."""
    pull(store, source.reference, PATIENT, Platform.host()).release()
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", "")
    other = Store.open(tmp_path / "other")
    with serving(store.root) as address, run_faults(address) as mirror:
        mirror.wrong_at = None if is_honest else made.index.chunks[75].blob_offset
        mirrored(Runner(other.root), tmp_path, proxy.name, mirror.name)
        proxy.served.clear()
        artifact = pull(other, source.reference, PATIENT, Platform.host(), lazily=True)
        artifact.release()
        assert artifact.source is not None
        machine = Machine(other, artifact.source)
        assert machine.client.read(9_000_000, 5000) == made.disk[9_000_000:9_005_000]
        machine.close()
        until(lambda: not server_of(other), 60)
    assert other.disk(source.digest).read_bytes() == made.disk
    assert bool(proxy.bytes_of("/blobs/")) is not is_honest


@needs_root
def test_no_more_processes_are_allowed() -> None:
    """The child of a child cannot be forked: an error in the one who asked, and no second copy of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
            os.setresuid(*[UNUSED_UID] * 3)
            start._in_new_process(lambda: os._exit(0))
        except BlockingIOError:
            os.write(writer, b"%d" % os.getpid())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    assert os.read(reader, 100) == b"%d" % child
    os.close(reader)
