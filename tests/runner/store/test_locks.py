"""Locks: making and using do not wait for each other, every wait is told and ends, and damage stays marked."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rootdisk.errors import Busy, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.system import locks
from runner.sandbox.directory import Sandbox
from runner.sandbox.upkeep.prune import prune
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Damaged, Store
from tests.support.artifacts import noise, publish, sample
from tests.support.faults import ALWAYS, PIECE_BYTES, Fault, FaultProxy
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.sandboxes import spec_of
from tests.support.waiting import until

CHUNK = 128 << 10
MADE = sample([*noise(60, CHUNK), bytes(1 << 20), *noise(20, CHUNK, seed=1)])
HTTP = RegistryOptions(plain_http=True)
MAX_S = 120  # what everything here takes at most, on a slow machine


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """What it said; it is told to end by the end of its input."""
    output, errors = process.communicate(timeout=MAX_S)
    assert process.returncode == status, errors
    return output, errors


HOLD = """
import sys
from pathlib import Path
from rootdisk.system import locks
with locks.held(Path(sys.argv[1]), doing="makes a thing"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(path: Path) -> subprocess.Popen[str]:
    process = python(HOLD, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_at_a_time_though_the_file_is_removed_each_time(tmp_path: Path) -> None:
    count = """
import sys
from pathlib import Path
from rootdisk.system import locks
path, number = Path(sys.argv[1]), Path(sys.argv[2])
locks._POLL_S = 0.0001
for _ in range(100):
    with locks.held(path):
        value = int(number.read_text())
        number.write_text(str(value + 1))
"""
    (tmp_path / "number").write_text("0")
    for process in [python(count, tmp_path / "lock", tmp_path / "number") for _ in range(4)]:
        assert ended(process) == ("", "")
    assert (tmp_path / "number").read_text() == "400"
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_who_waits_is_told_for_whom_and_not_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(locks, "SAY_S", 0.1)
    process = holding(tmp_path / "lock")
    who = f"process {process.pid} \\(makes a thing\\)"
    with pytest.raises(Busy, match=f"disk abc is in use by {who}"):
        locks.take(tmp_path / "lock", shared=shared, timeout_s=1.5, what="disk abc")
    assert capsys.readouterr().err == f"waiting for {who}, for disk abc\n".replace("\\", "")
    with pytest.raises(Busy, match=who):
        locks.take(tmp_path / "lock", shared=shared, timeout_s=0)
    assert capsys.readouterr().err == ""
    process.kill()
    process.communicate()
    os.close(locks.take(tmp_path / "lock", shared=shared, timeout_s=0))


def test_a_wait_goes_on_while_something_moves(tmp_path: Path) -> None:
    process = holding(tmp_path / "lock")
    seen: list[float] = []

    def moves() -> int:
        seen.append(time.monotonic())
        return min(len(seen), 10)

    with pytest.raises(Busy):
        locks.take(tmp_path / "lock", timeout_s=0.2, moves=moves)
    assert len(seen) > 10
    ended(process)


def test_a_wait_can_be_interrupted(tmp_path: Path) -> None:
    first = holding(tmp_path / "lock")
    second = python(HOLD, tmp_path / "lock")
    assert second.stderr is not None
    assert second.stderr.readline().startswith("waiting for process")
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=MAX_S)
    assert second.returncode != 0
    ended(first)


def test_a_lock_is_no_way_to_another_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "new").symlink_to("made")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "new", "folder", "fifo"):
        with pytest.raises(RootdiskError, match="lock "):
            locks.take(tmp_path / name)
    assert (tmp_path / "other").read_text() == "precious"
    assert not (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def registry(registry: RunningRegistry) -> RunningRegistry:
    publish(MADE, f"{registry.name}/locks/a:v1", registry.options)
    return registry


def fetched(store: Store, proxy: FaultProxy) -> StoredArtifact:
    return pull(store, parse_reference(f"{proxy.name}/locks/a:v1"), HTTP, Platform.host(), ask=False)


def damage(disk: Path, chunks: int) -> bytes:
    """Wrong bytes in that many chunks of the disk; all of the file then."""
    disk.chmod(0o600)
    with disk.open("r+b") as file:
        for number in range(chunks):
            file.seek(number * CHUNK + 7)
            file.write(b"damage")
    disk.chmod(0o400)
    return disk.read_bytes()


def command(store: Store, *arguments: str) -> subprocess.Popen[str]:
    return python("import sys; from runner.cli import main; sys.exit(main(sys.argv[1:]))", *arguments)


def wait_for_disk_request(proxy: FaultProxy, process: subprocess.Popen[str], before: int = 0) -> None:
    def asked() -> int:
        return sum(path.endswith(MADE.path) for _, path, _ in list(proxy.seen))

    until(lambda: process.poll() is not None or asked() != before, MAX_S, every_s=0.005)


PULL = """
import sys
from runner.store.pull import pull
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.store import Store
local = pull(Store.open(), parse_reference(sys.argv[1]), RegistryOptions(plain_http=True), Platform.host())
print("held", flush=True)
sys.stdin.read()
"""


@needs_registry
def test_many_at_once_use_what_one_of_them_fetches(store: Store, proxy: FaultProxy) -> None:
    """All of them have the disk at the same time; those who made it or not."""
    processes = [python(PULL, f"{proxy.name}/locks/a:v1") for _ in range(10)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
    assert proxy.bytes_of(MADE.path) <= MADE.blob.size + 10 * (
        CHUNK + 1024
    )  # each that waited reads one: possession.py
    assert prune(store, 0, None, dry_run=False) == []
    for process in processes:
        ended(process)
    assert prune(store, 0, None, dry_run=False)
    assert not list((store.root / "locks").iterdir())


@needs_registry
def test_a_repair_does_not_wait_for_those_who_use_the_disk(store: Store, proxy: FaultProxy) -> None:
    local = fetched(store, proxy)  # and held
    made = Sandbox.create(store, spec_of("runs", local, keep=True))
    made.take_name()
    bad = damage(local.disk, 3)
    with local.disk.open("rb") as used:
        served = proxy.bytes_of(MADE.path)
        output, errors = ended(command(store, "verify", "--repair"))
        assert output == "3 files, 1 damaged, 1 repaired\n"
        assert "these run with the damaged one until they are started again: runs" in errors
        assert local.disk.read_bytes() == MADE.disk
        assert used.read() == bad
        assert proxy.bytes_of(MADE.path) - served < 5 * CHUNK
    made.release()
    local.release()
    assert ended(command(store, "verify"))[0] == "3 files, 0 damaged\n"
    assert not list((store.root / "damaged").iterdir())


@needs_registry
def test_a_damaged_disk_boots_nothing_before_it_is_whole(store: Store, proxy: FaultProxy) -> None:
    local = fetched(store, proxy)
    kept = Sandbox.create(store, spec_of("kept", local, keep=True))
    kept.take_name()
    kept.release()
    local.release()
    bad = damage(local.disk, 60)
    assert ended(command(store, "verify"), 1)[0] == "3 files, 1 damaged\n"

    def refused() -> None:
        with pytest.raises(Damaged, match=f"{local.disk.name[:12]} is damaged in the store: the chunk at 0 is damaged"):
            fetched(store, proxy)
        _, errors = ended(command(store, "start", "kept"), 125)
        assert errors.count("\n") == 1
        assert "runner verify --repair" in errors
        assert local.disk.read_bytes() == bad

    refused()
    proxy.add(Fault("stall", MADE.path, ALWAYS, after=200_000, seconds=MAX_S))
    first = command(store, "verify", "--repair")
    wait_for_disk_request(proxy, first, sum(path.endswith(MADE.path) for _, path, _ in proxy.seen))
    refused()
    second = command(store, "verify", "--repair")
    assert second.stderr is not None
    said = [second.stderr.readline() for _ in range(2)]
    assert said[1] == (
        f"waiting for process {first.pid} (fetches disk {local.disk.name[:12]}), for disk {local.disk.name[:12]}\n"
    )
    proxy.faults.clear()
    first.kill()
    first.communicate()
    assert "1 repaired" in ended(second)[0]
    assert local.disk.read_bytes() == MADE.disk
    assert not list((store.root / "damaged").iterdir())
    fetched(store, proxy).release()


@needs_registry
@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.nightly)])
def test_repairs_killed_at_random_moments(store: Store, proxy: FaultProxy, kills: int) -> None:
    local = fetched(store, proxy)
    local.release()
    moments = random.Random(kills)
    proxy.pause_s = PIECE_BYTES / (4 << 20)
    whole = 0
    for _ in range(kills):
        if local.disk.read_bytes() == MADE.disk:
            whole += 1
            damage(local.disk, 60)
        process = command(store, "verify", "--repair")
        wait_for_disk_request(proxy, process, sum(path.endswith(MADE.path) for _, path, _ in proxy.seen))
        time.sleep(moments.uniform(0, 1.5))
        process.kill()
        process.communicate()
        # Whatever the moment: the disk is there under its name, and whole or marked.
        assert local.disk.read_bytes() == MADE.disk or list((store.root / "damaged").iterdir())
    proxy.pause_s = 0
    ended(command(store, "verify", "--repair"))
    assert ended(command(store, "verify"))[0] == "3 files, 0 damaged\n"
    assert local.disk.read_bytes() == MADE.disk
    assert not list((store.root / "disks").glob("*.partial"))
    assert not list((store.root / "damaged").iterdir())
    assert not list((store.root / "locks").glob("*.make"))


@needs_registry
def test_a_repair_without_origin_changes_nothing(store: Store, proxy: FaultProxy) -> None:
    local = fetched(store, proxy)
    local.release()
    bad = damage(local.disk, 1)
    proxy.add(Fault("status", "/manifests/", ALWAYS, status=404))
    _, errors = ended(command(store, "verify", "--repair"), 1)
    assert errors.count("\n") == 2
    assert "not repaired" in errors
    assert local.disk.read_bytes() == bad
    proxy.faults.clear()
    names = {path: path.read_bytes() for path in (store.root / "names").iterdir()}
    for path in names:
        path.unlink()
    _, errors = ended(command(store, "verify", "--repair"), 1)
    assert "the store does not know its origin" in errors
    assert local.disk.read_bytes() == bad
    assert list((store.root / "damaged").iterdir())
    output, _ = ended(command(store, "pull", "--plain-http", "--json", f"{proxy.name}/locks/a:v1"))
    assert json.loads(output)[0]["fetched"] < 2 * CHUNK
    assert local.disk.read_bytes() == MADE.disk
    assert not list((store.root / "damaged").iterdir())


@needs_registry
@pytest.mark.parametrize("kind", ["directory", "link", "fifo", "empty"])
@pytest.mark.parametrize("place", ["disk", "index", "partial", "blob"])
def test_odd_files_in_the_store(store: Store, proxy: FaultProxy, tmp_path: Path, place: str, kind: str) -> None:
    """Found damaged and made again, or one line; no other file is touched, and nothing is waited for."""
    local = fetched(store, proxy)
    local.release()
    path = {
        "disk": local.disk,
        "index": local.disk.with_suffix(".chunks"),
        "partial": local.disk.with_suffix(".partial"),
        "blob": store.blob_path(local.config_digest),
    }[place]
    path.unlink(missing_ok=True)
    (tmp_path / "other").write_text("precious")
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "other")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
    process = command(store, "verify", "--repair")
    output, errors = process.communicate(timeout=MAX_S)
    assert "Traceback" not in errors
    assert process.returncode in (0, 1)
    assert ("1 damaged" in output) == (place != "partial")
    if process.returncode:
        assert kind == "directory"
        assert errors.count("\n") == 2
    else:
        assert ended(command(store, "verify"))[0] == "3 files, 0 damaged\n"
    assert (tmp_path / "other").read_text() == "precious"
