"""The server of a disk that is killed at each step of a fill, and a store that becomes read-only meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from runner.lazy import agenda, reads
from runner.store import filling
from runner.store.filling import DiskSource
from runner.store.images import images
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import Sample
from tests.support.commands import Runner
from tests.support.faults import FaultProxy
from tests.support.mounts import needs_root
from tests.support.nbd import PATIENT, Machine, NbdError, server_of
from tests.support.registry import needs_registry
from tests.support.waiting import until

pytestmark = needs_registry
STEPS = ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "ftruncate", "dup2")


def begun(store: Store, source: DiskSource) -> Machine:
    """A machine, also if the server is killed while it connects, as a keeper does it."""
    while True:
        try:
            return Machine(store, source)
        except (OSError, AssertionError):
            pass


@pytest.mark.nightly  # a fill for each step
def test_killed_at_each_step(
    monkeypatch: pytest.MonkeyPatch, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Whatever it was about to do, its machine and a pull get the right bytes, and nothing is left."""
    left = tmp_path / "left"  # calls until one is not made

    def dying(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def step(*given: Any, **more: Any) -> Any:
            """End the server before the call whose turn it is."""
            if left.exists() and Path("/proc/self/cmdline").read_bytes().startswith(b"runner: serves"):
                count = int(left.read_text())
                left.write_text(str(count - 1))
                if count == 1:
                    said.write_text(f"{said.read_text()}{name} {given!r:.100}\n")
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **more)

        return step

    said = tmp_path / "said"
    said.write_text("")
    for name in STEPS:
        monkeypatch.setattr(os, name, dying(name))
    for number in itertools.count(1):
        left.unlink(missing_ok=True)
        runner = Runner(store.root)
        for digest in [image.digest for image in images(store)]:
            done = runner("rmi", "--force", str(digest))
            assert done.returncode == 0, done.stderr
        artifact = pull(store, parse_reference(f"{proxy.name}/lazy/a:v1"), PATIENT, Platform.host(), lazily=True)
        artifact.release()
        assert artifact.source is not None
        before = said.read_text()
        left.write_text(str(number))
        machine = begun(store, artifact.source)
        assert machine.read(5_000_000, 5000) == made.disk[5_000_000:5_005_000]
        until(lambda before=before: store.disk(source.digest).exists() or said.read_text() != before, 60)  # type: ignore[misc]
        assert machine.read(9_000_000, 5000) == made.disk[9_000_000:9_005_000]
        machine.close()
        pull(store, parse_reference(f"{proxy.name}/lazy/a:v1"), PATIENT, Platform.host()).release()
        until(lambda: not server_of(store))
        assert store.disk(source.digest).read_bytes() == made.disk
        assert runner("verify").stdout.endswith(", 0 damaged\n")
        assert not list((store.root / "disks").glob("*.partial"))
        print(number, said.read_text()[len(before) :].strip())
        if said.read_text() == before:
            break
    assert number > 8


def test_a_name_that_a_killed_process_was_writing(store: Store, proxy: FaultProxy) -> None:
    """It does not count: the artifact is listed once, and removed by its digest."""
    reference = parse_reference(f"{proxy.name}/lazy/a:v1")
    pull(store, reference, PATIENT, Platform.host()).release()
    (name,) = (store.root / "names").iterdir()
    shutil.copy(name, name.with_name(f".{name.name}.0123456789abcdef"))
    (image,) = images(store)
    assert image.name == name
    assert Runner(store.root)("rmi", image.digest).stdout.count("untagged") == 1
    assert images(store) == []


@pytest.fixture
def file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have the store on a file system of its own."""
    image, place = tmp_path / "image", tmp_path / "place"
    with image.open("wb") as file:
        file.truncate(80 << 20)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, place], check=False).returncode:
        pytest.skip("no loop devices here")
    monkeypatch.setenv("ROOTDISK_STORE", str(place / "store"))
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
@needs_root
@pytest.mark.nightly  # a file system is made, and checked
def test_the_file_system_becomes_read_only(
    monkeypatch: pytest.MonkeyPatch, file_system: Path, made: Sample, proxy: FaultProxy
) -> None:
    """As after an error of the disk: what is there can be read, other reads fail with the reason, and later all goes on."""
    monkeypatch.setattr(reads, "WAIT_S", 1.0)
    monkeypatch.setattr(agenda, "PAUSES_S", (0.2,))
    store, reference = Store.open(), parse_reference(f"{proxy.name}/lazy/a:v1")
    runner = Runner(store.root)
    artifact = pull(store, reference, PATIENT, Platform.host(), lazily=True)
    artifact.release()
    assert artifact.source is not None
    proxy.pause_s = 0.05
    with contextlib.closing(Machine(store, artifact.source)) as machine:
        assert machine.client.read(0, 5000) == made.disk[:5000]
        subprocess.run(["mount", "-o", "remount,abort", file_system], check=False)
        assert machine.client.read(0, 5000) == made.disk[:5000]
        with pytest.raises(NbdError, match="Input/output error"):
            machine.client.read(10_000_000, 100)
        status = filling.status(store, artifact.source.digest)
        assert status is not None
        assert "Read-only file system" in status.problem
        for words in (("pull", "--plain-http", str(reference)), ("rmi", "--force", str(reference)), ("prune",)):
            done = runner(*words)
            assert done.returncode == 125
            assert done.stderr.count("\n") == 1
            assert "Read-only file system" in done.stderr
        assert "incomplete" in runner("images").stdout
    until(lambda: not server_of(store))
    subprocess.run(["umount", file_system], check=True)
    subprocess.run(["fsck.ext4", "-fy", file_system.with_name("image")], check=False, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", file_system.with_name("image"), file_system], check=True)
    proxy.pause_s = 0
    pull(store, reference, PATIENT, Platform.host()).release()
    assert store.disk(artifact.source.digest).read_bytes() == made.disk
    assert runner("verify").stdout.endswith(", 0 damaged\n")
