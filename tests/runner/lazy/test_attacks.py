"""The server of a disk against everybody: registries that lie, a store that cannot be written, and whoever removes files."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from runner.lazy import agenda, reads
from runner.sandbox.upkeep.prune import prune
from runner.store import filling
from runner.store.filling import DiskSource
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import Sample, publish
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.nbd import PATIENT, QUICK, Machine, NbdError, server_of
from tests.support.registry import docker_config, needs_registry, run_registry
from tests.support.waiting import until

pytestmark = needs_registry
Boot = Callable[[], Machine]

ANSWERS = {
    "huge Content-Length": Fault("as", status=206, headers={"Content-Length": str(1 << 62)}),
    "negative Content-Length": Fault("as", status=206, headers={"Content-Length": "-1"}),
    "no number": Fault("as", status=206, headers={"Content-Length": "many"}),
    "another range": Fault("as", status=206, headers={"Content-Range": "bytes 0-9/10"}),
    "no range": Fault("as", status=206, headers={"Content-Range": "x"}),
    "200 for a part": Fault("as", status=200),
    "204": Fault("as", status=204),
    "301 to nowhere": Fault("as", status=301, headers={"Location": "http://["}),
    "a file": Fault("as", status=307, headers={"Location": "file:///etc/passwd"}),
    "401": Fault("as", status=401, headers={"WWW-Authenticate": 'Bearer realm="file:///etc/passwd"'}),
    "416": Fault("as", status=416),
    "compressed": Fault("as", status=206, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_that_lie(
    monkeypatch: pytest.MonkeyPatch, boot: Boot, source: DiskSource, made: Sample, proxy: FaultProxy, kind: str
) -> None:
    """The right bytes or EIO; and the right bytes as soon as the registry is honest."""
    monkeypatch.setattr(reads, "WAIT_S", 1.0)
    monkeypatch.setattr(agenda, "PAUSES_S", (0.2,))
    fault = ANSWERS[kind]
    proxy.add(Fault(fault.kind, made.path, ALWAYS, status=fault.status, headers=fault.headers))
    machine = boot()
    with contextlib.suppress(NbdError):
        assert machine.client.read(5_000_000, 5000) == made.disk[5_000_000:5_005_000]
    proxy.faults.clear()
    until(lambda: is_right(machine, made))


def is_right(machine: Machine, made: Sample) -> bool:
    with contextlib.suppress(NbdError):
        return machine.client.read(7_000_000, 5000) == made.disk[7_000_000:7_005_000]  # not in the hole
    return False


def test_one_bad_chunk_holds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch, boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """Its reads end with EIO though others succeed; the rest is filled, and it comes when the registry has it."""
    monkeypatch.setattr(reads, "WAIT_S", 1.0)
    monkeypatch.setattr(agenda, "PAUSES_S", (0.1,))
    chunk = made.index.chunks[20]
    proxy.wrong_at = chunk.blob_offset + 1000
    machine = boot()
    with pytest.raises(NbdError, match="Input/output error"):
        machine.client.read(chunk.offset, 100)
    until(
        lambda: (
            (s := filling.status(store, source.digest)) is not None and s.filled_bytes == s.data_bytes - chunk.length
        )
    )
    assert machine.client.read(chunk.end, 100) == made.disk[chunk.end : chunk.end + 100]
    proxy.wrong_at = None
    until(lambda: store.disk(source.digest).exists(), 60)
    assert machine.client.read(chunk.offset, 100) == made.disk[chunk.offset : chunk.offset + 100]


@pytest.mark.nightly  # tokens live for seconds
def test_tokens_that_run_out(tmp_path: Path, nobody: None, store: Store, made: Sample) -> None:
    """The fill takes longer than a token lives; the server renews it."""
    with run_registry(tmp_path / "registry", token_lifetime_s=-58, password=("ann", "secret-8")) as registry:
        assert registry.tokens is not None
        docker_config(tmp_path / "docker", **{registry.name: ("ann", "secret-8")})
        publish(made, f"{registry.name}/lazy/a:v1", registry.options)
        with run_faults(registry.name) as proxy:
            docker_config(tmp_path / "docker", **{proxy.name: ("ann", "secret-8")})
            artifact = pull(store, parse_reference(f"{proxy.name}/lazy/a:v1"), QUICK, Platform.host(), lazily=True)
            artifact.release()
            source = artifact.source
            assert source is not None
            registry.tokens.asked.clear()
            proxy.pause_s = 0.03
            machine = Machine(store, source)
            until(lambda: store.disk(source.digest).exists(), 60)
            assert len(registry.tokens.asked) > 1
            machine.close()
            until(lambda: not server_of(store))
    for path in store.root.rglob("*"):
        if path.is_file():
            assert b"secret-8" not in path.read_bytes()


def test_prune_while_a_disk_is_filled(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """With a sandbox, and when only the fill goes on."""
    proxy.pause_s = 0.01
    machine = boot()
    machine.read(0, 100)
    prune(store, 0, None, dry_run=False)
    assert machine.client.read(3_000_000, 100) == made.disk[3_000_000:3_000_100]
    machine.close()
    kept = sorted(os.listdir(store.root / "blobs"))
    prune(store, 0, None, dry_run=False)
    assert sorted(os.listdir(store.root / "blobs")) == kept
    proxy.pause_s = 0
    until(lambda: not server_of(store), 60)
    places = [store.root / name for name in ("blobs", "disks", "lazy")]
    until(lambda: [prune(store, 0, None, dry_run=False)] and not any(map(os.listdir, places)))  # its locks go last


def test_files_are_removed_under_it(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """Nobody does that but a user by hand: reads stay right, and the server ends or completes the disk."""
    proxy.pause_s = 0.01
    machine = boot()
    machine.read(0, 100)
    next((store.root / "disks").glob("*.partial")).unlink()
    proxy.pause_s = 0
    for offset in range(0, len(made.disk) - 100, 700_000):
        assert machine.client.read(offset, 100) == made.disk[offset : offset + 100]
    machine.close()
    until(lambda: not server_of(store), 60)


def test_a_store_that_cannot_be_written(boot: Boot, store: Store, source: DiskSource, made: Sample) -> None:
    """One line, at once: no server can be started."""
    (store.root / "disks" / f"{source.digest.hex}.partial").mkdir()
    with pytest.raises(RootdiskError) as failed:
        boot()
    assert "does not answer" not in failed.value.message
    assert not server_of(store)


def test_killed_and_started_many_times_at_once(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """Whoever starts a server while others do gets the same one."""
    proxy.pause_s = 0.002
    machines = [boot() for _ in range(3)]
    for _ in range(5):
        for pid in server_of(store):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for number, machine in enumerate(machines):
            offset = 1_000_000 * (number + 1)
            assert machine.read(offset, 5000) == made.disk[offset : offset + 5000]
        assert len(server_of(store)) == 1


@pytest.mark.parametrize("how", ["removed", pytest.param("moved", marks=pytest.mark.nightly)])
def test_the_store_goes_and_another_comes(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy, how: str
) -> None:
    """A server goes on with a file that has lost its name. It gives the final name to no other file, and takes no lock of others."""
    chunk = made.index.chunks[20]
    proxy.wrong_at = chunk.blob_offset + 1000
    old = boot()
    wanted = sum(not chunk.zero for chunk in made.index.chunks) - 1
    until(lambda: (s := filling.status(store, source.digest)) is not None and s.filled_bytes == wanted * chunk.length)
    (pid,) = server_of(store)
    if how == "moved":
        store.root.rename(store.root.with_name("elsewhere"))
    else:
        shutil.rmtree(store.root)
    again = Store.open(store.root)
    proxy.pause_s = 0.05
    artifact = pull(again, source.reference, PATIENT, Platform.host(), lazily=True)
    artifact.release()
    machine = Machine(again, source)
    proxy.wrong_at = None
    assert old.client.read(chunk.offset, 100) == made.disk[chunk.offset : chunk.offset + 100]
    old.close()
    until(lambda: not Path(f"/proc/{pid}").exists(), 60)
    assert not again.disk(source.digest).exists()
    assert (again.root / "lazy" / f"{source.digest.hex}.socket").exists()
    assert machine.client.read(9_000_000, 100) == made.disk[9_000_000:9_000_100]
    proxy.pause_s = 0
    until(lambda: again.disk(source.digest).exists(), 60)
    assert again.disk(source.digest).read_bytes() == made.disk
    machine.close()
    until(lambda: not server_of(again))


@pytest.mark.nightly  # forty machines
def test_more_sandboxes_than_descriptors(boot: Boot, made: Sample, proxy: FaultProxy) -> None:
    """A server needs two for each; it may have as many as this host allows, whoever has started it."""
    few = resource.getrlimit(resource.RLIMIT_NOFILE)
    proxy.pause_s = 0.01
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, few[1]))
    try:
        boot()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, few)
    machines = [boot() for _ in range(40)]
    for machine in machines:
        assert machine.client.read(4096, 100) == made.disk[4096:4196]


def test_a_file_as_large_as_the_disk_is_not_allowed(boot: Boot, store: Store) -> None:
    """By ulimit -f, of whoever starts the server: one line that says so."""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, allowed[1]))
    try:
        with pytest.raises(RootdiskError, match="File too large"):
            boot()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert not server_of(store)


@pytest.mark.nightly  # a second of looking on
def test_no_descriptor_is_left(boot: Boot, store: Store, source: DiskSource, made: Sample) -> None:
    """The host allows no more: who has come in time is served, the server does not turn in circles, and others come later."""
    machine = boot()
    until(lambda: store.disk(source.digest).exists(), 60)
    (pid,) = server_of(store)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (60, 60))
    clients = [filling.connect(store, source.digest) for _ in range(70)]
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == 60)

    def used() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = used()
    time.sleep(1)
    assert used() - before < 20  # hundredths of a second
    assert machine.client.read(4096, 100) == made.disk[4096:4196]
    for client in clients:
        assert client is not None
        client.close()
    assert boot().client.read(4096, 100) == made.disk[4096:4196]
