"""The name of an artifact that is being fetched: people see it at once; nothing is found or trusted by it before all was served."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootdisk.artifact.compressed import Content
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from runner.lazy.start import enter
from runner.sandbox.upkeep.prune import prune
from runner.store import names, possession
from runner.store.filling import DiskSource
from runner.store.images import images
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Store
from tests.support.artifacts import ELF, KERNEL, VMLINUX, Sample, publish, with_boot
from tests.support.commands import Runner
from tests.support.faults import ALWAYS, Fault, FaultProxy
from tests.support.nbd import PATIENT, Machine, end_servers, server_of
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.sandboxes import spec_of
from tests.support.waiting import until

pytestmark = [
    needs_registry,
    pytest.mark.skipif(Platform.host().architecture != "amd64", reason="QEMU starts a vmlinux on x86 only"),
]
LATE = f"/blobs/{Digest.of(KERNEL)}"  # the kernel, which no machine needs
Asked = Callable[[str], DiskSource]


@pytest.fixture
def asked(store: Store, proxy: FaultProxy, booted: Sample) -> Iterator[Asked]:
    """Ask for an artifact lazily. Its kernel does not come before `proxy.faults` is cleared."""
    proxy.add(Fault("status", LATE, ALWAYS, status=404))

    def ask(name: str) -> DiskSource:
        reference = parse_reference(f"{proxy.name}/lazy/{name}")
        artifact = pull(store, reference, PATIENT, Platform.host(), lazily=True)
        artifact.release()
        assert artifact.source is not None
        return artifact.source

    yield ask
    end_servers(store)


def listed(store: Store) -> dict[str, bool]:
    """Every name, and whether the artifact is complete."""
    return {image.reference.rpartition("/")[2]: image.is_complete for image in images(store)}


def test_it_is_listed_found_and_removed_by_its_name(store: Store, asked: Asked, proxy: FaultProxy) -> None:
    runner, name = Runner(store.root), f"{proxy.name}/lazy/booted:v1"
    proxy.pause_s = 0.05
    machine = Machine(store, asked("booted:v1"))
    machine.read(0, 100)
    assert listed(store) == {"booted:v1": False}
    assert os.listdir(store.root / "names") == []
    assert ", incomplete" in runner("images").stdout
    never = runner("boot", "--pull", "never", name)
    assert never.stderr == f"runner: {name} is only partly in the store: runner pull {name}\n"
    refused = runner("rmi", name)
    assert refused.stderr == f"runner: {name} is being fetched: to end that: runner rmi --force {name}\n"
    machine.close()
    removed = runner("rmi", "--force", name)
    assert f"untagged {name}" in removed.stdout, removed.stderr
    for folder in ("asked", "names", "disks", "blobs"):
        assert os.listdir(store.root / folder) == [], folder


def test_inspect_without_the_registry(store: Store, asked: Asked) -> None:
    source = asked("booted:v1")
    machine = Machine(store, source)
    closed = "127.0.0.1:9/lazy/booted:v1"
    names.note_asked(
        store, parse_reference(closed), source.platform, PATIENT, Digest.of(source.manifest), source.manifest
    )
    done = Runner(store.root)("inspect", "--plain-http", "--json", closed)
    assert json.loads(done.stdout)[0]["disk"]["digest"] == str(source.digest), done.stderr
    machine.close()


def test_whoever_is_killed_the_next_one_makes_it_a_name(store: Store, asked: Asked, proxy: FaultProxy) -> None:
    source = asked("booted:v1")
    proxy.pause_s = 0.05
    machine = Machine(store, source)
    machine.read(0, 100)
    for pid in server_of(store):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not server_of(store))
    assert listed(store) == {"booted:v1": False}
    proxy.faults.clear()
    proxy.pause_s = 0
    machine.again()
    machine.close()
    until(lambda: not server_of(store), 60)
    assert listed(store) == {"booted:v1": True}
    assert os.listdir(store.root / "asked") == []


def test_everybody_who_asked_gets_a_name(
    store: Store, asked: Asked, registry: RunningRegistry, made: Sample, booted: Sample, proxy: FaultProxy
) -> None:
    """By another tag, and of another artifact with the same disk."""
    publish(booted, f"{registry.name}/lazy/booted:same", registry.options)
    other = with_boot(made, VMLINUX, initramfs=b"another" * 100, vmlinux=Content(Digest.of(ELF), len(ELF)))
    publish(other, f"{registry.name}/lazy/booted:v2", registry.options)
    proxy.pause_s = 0.1
    sources = [asked(f"booted:{tag}") for tag in ("v1", "same", "v2")]
    machines = [Machine(store, source) for source in sources]
    assert os.listdir(store.root / "names") == []
    assert set(listed(store)) == {"booted:v1", "booted:same", "booted:v2"}
    proxy.faults.clear()
    proxy.pause_s = 0
    for machine in machines:
        machine.close()
    until(lambda: not server_of(store), 60)
    assert listed(store) == dict.fromkeys(("booted:v1", "booted:same", "booted:v2"), True)
    assert os.listdir(store.root / "asked") == []


def test_a_name_that_was_removed_is_not_made_again(store: Store, asked: Asked, proxy: FaultProxy) -> None:
    """A sandbox goes on with the disk meanwhile."""
    machine = Machine(store, asked("booted:v1"))
    machine.read(0, 100)
    name = f"{proxy.name}/lazy/booted:v1"
    assert f"untagged {name}" in Runner(store.root)("rmi", "--force", name).stdout
    proxy.faults.clear()
    machine.close()
    until(lambda: not server_of(store), 60)
    assert listed(store) == {"": True}


def test_a_name_of_something_newer_stays(store: Store, asked: Asked, proxy: FaultProxy) -> None:
    """The tag has moved since, and was pulled; a kept sandbox goes on with the disk that it had."""
    old = asked("booted:v1")
    reference = parse_reference(f"{proxy.name}/lazy/booted:v1")
    names.remember(store, reference, Platform.host(), PATIENT, Digest.of(b"{}"), b"{}")
    proxy.faults.clear()
    Machine(store, old).close()
    until(lambda: not server_of(store), 60)
    assert names.known(store, reference, Platform.host()) == b"{}"


def test_it_proves_nothing(store: Store, asked: Asked) -> None:
    """What a repository has shown is in names/ alone: a process that is killed leaves no proof."""
    source = asked("booted:v1")
    assert possession.served(store, source.reference, source.options) == frozenset()
    assert names.known(store, source.reference, source.platform) is None
    assert names.asked_for(store, source.reference, source.platform) == source.manifest


def test_what_a_killed_process_leaves(store: Store, asked: Asked, proxy: FaultProxy) -> None:
    """Both files for a moment: it is listed once, removed whole, and a prune forgets what leads nowhere."""
    proxy.faults.clear()
    source = asked("booted:v1")
    (path, _), *_ = names.asked(store)
    left = path.read_bytes()
    enter(store, source).close()
    until(lambda: not server_of(store), 60)
    path.write_bytes(left)
    assert listed(store) == {"booted:v1": True}
    (image,) = images(store)
    image.untag(store)
    assert not path.exists()
    path.write_bytes(left)
    prune(store, 0, None, dry_run=False)
    assert not path.exists()


def test_a_kept_sandbox_of_a_layout_that_was_named_by_a_relative_path(
    store: Store, made: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with its disk from any directory."""
    monkeypatch.chdir(tmp_path)
    publish(made, "oci:out:1", PATIENT)
    reference = parse_reference("oci:out:1")
    artifact = pull(store, reference, PATIENT, Platform.host(), lazily=True)
    artifact.release()
    spec = spec_of("kept", artifact)._replace(reference=str(reference))
    monkeypatch.chdir("/")
    again = StoredArtifact.kept(store, spec)
    again.release()
    assert again.source is not None
    assert again.source.reference.path == tmp_path / "out"


def test_a_policy_that_refuses_it(store: Store, booted: Sample, proxy: FaultProxy, tmp_path: Path) -> None:
    """Nothing but its manifest is fetched, and it is not listed."""
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    reference = parse_reference(f"{proxy.name}/lazy/booted:v1")
    with pytest.raises(RootdiskError, match="policy"):
        pull(store, reference, PATIENT, Platform.host(), lazily=True, policy=policy)
    assert images(store) == []
    assert not list(names.asked(store))
    assert not proxy.bytes_of("/blobs/")
