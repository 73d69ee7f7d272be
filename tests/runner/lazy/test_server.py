"""The server of a disk that is being fetched: reads, the fill, faults, deaths, and who shares what."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rootdisk.errors import RegistryError
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from runner.lazy import agenda, reads
from runner.store import filling
from runner.store.chunks import CONNECTIONS
from runner.store.filling import DiskSource
from runner.store.pull import pull
from runner.store.store import Store
from runner.store.verify import verify
from tests.support.artifacts import Sample
from tests.support.fault_cases import Case, disk_cases
from tests.support.faults import ALWAYS, PIECE_BYTES, Fault, FaultProxy
from tests.support.fetches import refetched, times_served, verified
from tests.support.nbd import PATIENT, Machine, NbdError, listening, server_of
from tests.support.registry import needs_registry
from tests.support.waiting import until

pytestmark = needs_registry

Boot = Callable[[], Machine]
CASES = {case.name: case for case in disk_cases("/blobs/")}
NEVER = {"429 for an hour", "403", "404", "redirect loop"} | {name for name in CASES if name.endswith("always")} | {
    "slow drip", "slow drip of a head", "huge head", "parts of one byte"
}  # fmt: skip


def complete(store: Store, source: DiskSource, made: Sample) -> None:
    """Wait until the disk is complete, and compare it with what was published."""
    until(lambda: store.disk(source.digest).exists(), 60)
    assert store.disk(source.digest).read_bytes() == made.disk
    assert verify(store).damages == []
    assert not list((store.root / "disks").glob("*.partial"))


def test_real_clients(boot: Boot, made: Sample, tmp_path: Path) -> None:
    """qemu-img, qemu-io and libnbd's tools read the disk while it is being fetched; they agree that it is read-only."""
    if not shutil.which("qemu-io"):
        pytest.skip("needs qemu-utils")
    (tmp_path / "raw").write_bytes(made.disk)
    with listening(boot(), tmp_path) as uri:
        commands = [
            ["qemu-io", "-r", "-f", "raw", "-c", "read 5000001 300001", uri],
            ["qemu-img", "info", uri],
            ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(tmp_path / "raw"), uri],
        ]
        if shutil.which("nbdinfo"):
            commands += [["nbdinfo", uri], ["nbdcopy", uri, str(tmp_path / "copy")]]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
        if shutil.which("nbdcopy"):
            assert (tmp_path / "copy").read_bytes() == made.disk
        write = ["qemu-io", "-f", "raw", "-c", "write 0 4096", uri]
        assert subprocess.run(write, capture_output=True, timeout=60).returncode != 0


def test_any_reads_are_right_and_the_disk_gets_its_name(
    boot: Boot, made: Sample, store: Store, source: DiskSource, proxy: FaultProxy
) -> None:
    machine = boot()
    assert machine.client.size == len(made.disk)
    choose = random.Random(1)
    lengths = {}
    for cookie in range(60):
        offset = choose.randrange(len(made.disk))
        lengths[cookie] = min(choose.choice((1, 512, 4096, 70_000, 600_000)), len(made.disk) - offset)
        machine.client.ask(offset, lengths[cookie], cookie=cookie << 32 | offset)
    for _ in lengths:
        cookie, data = machine.client.answer(_Any(lengths))
        offset = cookie & 0xFFFFFFFF
        assert data == made.disk[offset : offset + lengths[cookie >> 32]]
    complete(store, source, made)
    until(lambda: not proxy.giving)
    assert set(times_served(proxy, made)) == {1}
    assert machine.read(0, 4096) == made.disk[:4096]  # on, without a break
    status = filling.status(store, source.digest)
    assert status is not None
    assert status.is_complete
    assert status.reads_waited
    machine.close()
    until(lambda: not server_of(store))
    assert os.listdir(store.root / "lazy") == []


class _Any(dict[int, int]):
    """Lengths by the upper half of a cookie."""

    def get(self, cookie: int, default: int = 0) -> int:  # type: ignore[override]
        return self[cookie >> 32]


def test_zero_chunks_cost_nothing(boot: Boot, made: Sample, proxy: FaultProxy) -> None:
    proxy.add(Fault("stall", made.path, ALWAYS, after=0, seconds=20))
    hole = next(chunk for chunk in made.index.chunks if chunk.zero)
    assert boot().client.read(hole.offset, hole.length) == bytes(hole.length)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (1 << 40, 512), (0, 33 << 20), ((1 << 64) - 512, 512)], ids=str)
def test_reads_that_are_not_on_the_disk(boot: Boot, offset: int, length: int) -> None:
    machine = boot()
    with pytest.raises(NbdError, match="Invalid argument"):
        machine.client.read(offset, length)
    assert len(machine.client.read(0, 512)) == 512


def test_whoever_speaks_something_else_loses_its_connection_only(boot: Boot, made: Sample) -> None:
    machine = boot()
    for words in (b"x" * 100, b"\0\0\0\3" + b"y" * 16, b"\0\0\0\3IHAVEOPT" + b"\xff" * 8, b"\0\0\0\0"):
        ours, theirs = socket.socketpair()
        filling.send(machine.server, {"do": "serve"}, [theirs.fileno()])
        theirs.close()
        ours.settimeout(20)
        ours.sendall(words)
        while ours.recv(4096):
            pass
        ours.close()
    writer = machine.connect()
    writer.ask(0, 512, kind=1)
    with pytest.raises(ConnectionError):
        writer.answer({})
    assert machine.read(4096, 4096) == made.disk[4096:8192]


@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b"{}", b'{"version":1}', b'{"version":2,"do":"attach"}', b'{"version":1,"do":"need"}',
     b'{"version":1,"do":"need","offset":-1,"length":1}', b'{"version":1,"do":"need","offset":1e99,"length":1}',
     b'{"version":1,"do":"serve"}', b"[" * 60_000],
)  # fmt: skip
def test_messages_that_mean_nothing(boot: Boot, store: Store, source: DiskSource, made: Sample, message: bytes) -> None:
    machine = boot()
    sock = filling.connect(store, source.digest)
    assert sock is not None
    with sock, contextlib.suppress(OSError):
        sock.send(message)
        sock.recv(100)
    assert machine.client.read(4096, 4096) == made.disk[4096:8192]


def test_many_machines_share_one_server_and_each_chunk_is_requested_once(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    proxy.pause_s = 0.002
    wrong: list[int] = []

    def use(seed: int) -> None:
        machine = boot()
        choose = random.Random(seed)
        for _ in range(30):
            offset = choose.randrange(len(made.disk) - 5000)
            if machine.client.read(offset, 5000) != made.disk[offset : offset + 5000]:
                wrong.append(offset)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(server_of(store)) == 1
    complete(store, source, made)
    until(lambda: not proxy.giving)
    assert set(times_served(proxy, made)) == {1}


def test_a_pull_joins_the_fill(boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy) -> None:
    proxy.pause_s = 0.05
    machine = boot()
    machine.read(0, 100)
    shown: list[tuple[int, int]] = []

    def show(done: int, total: int) -> None:
        shown.append((done, total))
        proxy.pause_s = 0

    artifact = pull(store, parse_reference(f"{proxy.name}/lazy/a:v1"), PATIENT, Platform.host(), show)
    assert artifact.disk.read_bytes() == made.disk
    assert artifact.fetched
    assert shown[-1] == (sum(not chunk.zero and chunk.length for chunk in made.index.chunks),) * 2
    until(lambda: not proxy.giving)
    assert set(times_served(proxy, made)) == {1}
    assert machine.client.read(0, 100) == made.disk[:100]
    artifact.release()


@pytest.mark.usefixtures("quick")
def test_a_pull_that_joins_is_told_why_it_fails(boot: Boot, store: Store, made: Sample, proxy: FaultProxy) -> None:
    proxy.add(Fault("status", made.path, ALWAYS, status=404))
    boot()
    with pytest.raises(RegistryError, match="404"):
        pull(store, parse_reference(f"{proxy.name}/lazy/a:v1"), PATIENT, Platform.host())


def test_a_pull_that_was_first_is_not_disturbed(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """A machine starts while another process pulls. Its reads go first; the pull completes the disk."""
    proxy.pause_s = 0.02
    reference = parse_reference(f"{proxy.name}/lazy/a:v1")
    pulling = threading.Thread(target=lambda: pull(store, reference, PATIENT, Platform.host()).release())
    pulling.start()
    until(lambda: list((store.root / "disks").glob("*.partial")))
    machine = boot()
    assert machine.read(len(made.disk) - 9000, 5000) == made.disk[-9000:-4000]
    proxy.pause_s = 0
    pulling.join()
    complete(store, source, made)
    assert machine.read(0, 4096) == made.disk[:4096]
    until(lambda: (status := filling.status(store, source.digest)) is not None and status.is_complete)


def test_the_fill_goes_on_without_any_sandbox(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    proxy.pause_s = 0.005
    boot().close()
    complete(store, source, made)
    until(lambda: not server_of(store))


def test_the_traced_boot_comes_first(store: Store, source: DiskSource, made: Sample, proxy: FaultProxy) -> None:
    numbers = (70, 3, 50, 51)
    first = source._replace(first_chunks=numbers)
    proxy.pause_s = 0.01
    machine = Machine(store, first)
    until(lambda: (s := filling.status(store, source.digest)) is not None and s.filled_bytes > 7 * (128 << 10))
    here = {chunk.offset for chunk in verified(store.root, made)}
    assert {made.index.chunks[number].offset for number in numbers} <= here
    proxy.pause_s = 0
    machine.close()
    until(lambda: not server_of(store))


# Those that never end are waited for: two of them show the rule, the others run at night.
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.nightly if name in NEVER - {"404", "wrong bytes, always"} else ())
        for name, case in CASES.items()
    ],
    ids=CASES,
)
def test_faults_during_a_read(
    monkeypatch: pytest.MonkeyPatch,
    boot: Boot,
    store: Store,
    source: DiskSource,
    made: Sample,
    proxy: FaultProxy,
    case: Case,
) -> None:
    """The right bytes, or EIO after the time that is documented; never a wrong byte, and never for ever."""
    monkeypatch.setattr(reads, "WAIT_S", 2.0)
    monkeypatch.setattr(agenda, "PAUSES_S", (0.2,))
    faults = case.faults()
    for fault in faults:
        fault.path = made.path
    proxy.add(*faults)
    machine = boot()
    offset = made.index.chunks[60].offset + 1000
    if case.name in NEVER:
        with pytest.raises(NbdError, match="Input/output error"):
            machine.client.read(offset, 5000)
        told: list[str] = []
        while not any("failed" in text for text in told):
            message = filling.receive(machine.server)
            assert message is not None
            told.append(str(message[0].get("text", "")))
        assert any("wait" in text for text in told)
        assert "chunk 60" in told[-1]
        status = filling.status(store, source.digest)
        assert status is not None
        assert status.problem
        assert not store.disk(source.digest).exists()
        proxy.faults.clear()
        until(lambda: is_read(machine, offset))  # an attempt that is under way may still fail
    assert machine.read(offset, 5000) == made.disk[offset : offset + 5000]
    assert machine.read(0, len(made.disk)) == made.disk
    complete(store, source, made)
    assert len(server_of(store)) == 1


def is_read(machine: Machine, offset: int) -> bool:
    with contextlib.suppress(NbdError):
        return bool(machine.client.read(offset, 5000))
    return False


@pytest.mark.usefixtures("quick")
def test_the_registry_goes_away_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """A read waits meanwhile, and its sandbox is told."""
    monkeypatch.setattr(agenda, "PAUSES_S", (0.2,))
    proxy.add(Fault("status", made.path, ALWAYS, status=503))
    machine = boot()
    machine.client.ask(5_000_000, 4096)
    message = filling.receive(machine.server)
    assert message is not None
    assert message[0]["is"] == "waits"
    assert "503" in message[0]["text"]
    proxy.faults.clear()
    assert machine.client.answer({1: 4096})[1] == made.disk[5_000_000:5_004_096]
    message = filling.receive(machine.server)
    assert message is not None
    assert message[0]["is"] == "goes on"
    status = filling.status(store, source.digest)
    assert status is not None
    assert status.longest_wait_s > 0.5
    assert not status.problem


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.nightly)])
def test_killed_at_random_moments(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy, kills: int
) -> None:
    """The machine goes on with the next server, and no verified chunk is fetched again."""
    moments = random.Random(kills)
    killed = 0
    while killed < kills:
        proxy.served.clear()
        proxy.pause_s = PIECE_BYTES / (1 << 20)
        machine = boot()
        while killed < kills and not store.disk(source.digest).exists():
            offset = moments.randrange(len(made.disk) - 9000)
            machine.client.ask(offset, 9000)
            time.sleep(moments.uniform(0, 0.4))
            since = len(proxy.served)
            for pid in server_of(store):
                os.kill(pid, signal.SIGKILL)
            killed += 1
            until(lambda: not server_of(store) and not proxy.giving)
            since, have = len(proxy.served), verified(store.root, made)
            machine.again()
            assert machine.read(offset, 9000) == made.disk[offset : offset + 9000]
            # A new server may still ask for the chunk that the one before was writing, and once more for proof.
            assert refetched(proxy, since, made, have) <= 128 << 10
        proxy.pause_s = 0
        complete(store, source, made)
        lost = CONNECTIONS * (128 << 10)
        assert proxy.bytes_of(made.path) <= made.blob.size + (killed + 1) * lost
        machine.close()
        until(lambda: not server_of(store))
        if killed < kills:
            for path in (store.root / "disks").glob("*.raw"):
                path.unlink()


def test_a_server_of_a_complete_disk_is_killed(
    boot: Boot, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    machine = boot()
    complete(store, source, made)
    asked = len(proxy.seen)
    until(lambda: (status := filling.status(store, source.digest)) is not None and status.is_complete)
    (pid,) = server_of(store)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not server_of(store))
    assert machine.read(1000, 5000) == made.disk[1000:6000]
    assert len(proxy.seen) == asked


def test_a_client_that_does_not_read_holds_up_nobody(boot: Boot, made: Sample) -> None:
    lazy, other = boot(), boot()
    lazy.client.sock.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        for cookie in range(900):
            lazy.client.ask(0, 1 << 20, cookie)
    assert other.client.read(4096, 4096) == made.disk[4096:8192]


def test_it_uses_no_processor_time_when_the_disk_is_complete(
    boot: Boot, store: Store, source: DiskSource, made: Sample
) -> None:
    machine = boot()
    complete(store, source, made)
    until(lambda: (status := filling.status(store, source.digest)) is not None and status.is_complete)
    (pid,) = server_of(store)

    def used() -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    until(lambda: len(os.listdir(f"/proc/{pid}/task")) == 1)
    before = used()
    time.sleep(1)
    assert used() == before
    assert machine.client.read(0, 10) == made.disk[:10]
