"""The kernel of an artifact with a vmlinux, which QEMU starts in its place: it comes with the fill, and proves what it has to."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from rootdisk.artifact.compressed import Content
from rootdisk.artifact.format import ArtifactManifest
from rootdisk.errors import BadInput, DigestMismatch, RegistryError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from runner.lazy import agenda
from runner.lazy.start import enter
from runner.sandbox.state import Spec, parse, state_json
from runner.store import names
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Store
from tests.support.artifacts import BARE, ELF, KERNEL, VMLINUX, Sample, publish, with_boot
from tests.support.faults import ALWAYS, Fault, FaultProxy, Kind
from tests.support.nbd import PATIENT, QUICK, Machine, server_of
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.sandboxes import spec_of
from tests.support.waiting import until

pytestmark = [
    needs_registry,
    pytest.mark.skipif(Platform.host().architecture != "amd64", reason="QEMU starts a vmlinux on x86 only"),
]
BOOTED_KERNEL = Digest.of(KERNEL)


@pytest.mark.usefixtures("booted")
def test_the_kernel_that_is_not_started_comes_with_the_fill(store: Store, proxy: FaultProxy) -> None:
    reference = parse_reference(f"{proxy.name}/lazy/booted:v1")
    artifact = pull(store, reference, PATIENT, Platform.host(), lazily=True)
    assert artifact.source is not None
    assert artifact.kernel is None
    assert artifact.booted_kernel == artifact.vmlinux == store.blob_path(Digest.of(ELF))
    assert not proxy.bytes_of(str(BOOTED_KERNEL))
    machine = Machine(store, artifact.source)
    machine.close()
    until(lambda: not server_of(store), 60)
    assert store.blob_path(BOOTED_KERNEL).read_bytes() == KERNEL
    asked = len(proxy.seen)
    complete = pull(store, reference, PATIENT, Platform.host(), ask=False)
    assert complete.kernel == store.blob_path(BOOTED_KERNEL)
    assert len(proxy.seen) == asked
    assert proxy.bytes_of(str(BOOTED_KERNEL)) == len(KERNEL)
    for each in (artifact, complete):
        each.release()


def test_the_vmlinux_is_asked_for_beside_the_config(store: Store, proxy: FaultProxy, booted: Sample) -> None:
    """Of a repository that has served nothing yet. Each part is asked for once, and nothing of the disk."""
    roles = ArtifactManifest.parse(booted.artifact.manifest)
    assert roles.initramfs is not None
    at_once = [str(blob.digest) for blob in (roles.config, roles.chunks, VMLINUX.descriptor)]
    proxy.together = dict.fromkeys(at_once, threading.Barrier(len(at_once)))
    reference = parse_reference(f"{proxy.name}/lazy/booted:v1")
    artifact = pull(store, reference, PATIENT, Platform.host(), lazily=True)
    assert artifact.vmlinux is not None
    assert artifact.vmlinux.read_bytes() == ELF
    asked = [path.rpartition("/")[2] for _, path, _ in proxy.seen]
    assert sorted(asked[1:4]) == sorted(at_once)
    assert [asked[0], *asked[4:]] == ["v1", str(roles.initramfs.digest)]
    artifact.release()


@pytest.mark.usefixtures("booted")
def test_a_vmlinux_that_the_store_has_is_not_asked_for(
    store: Store, proxy: FaultProxy, registry: RunningRegistry
) -> None:
    newer = with_boot(BARE, VMLINUX, vmlinux=Content(Digest.of(ELF), len(ELF)))
    publish(newer, f"{registry.name}/lazy/booted:v2", registry.options)
    first, second = (parse_reference(f"{proxy.name}/lazy/booted:{tag}") for tag in ("v1", "v2"))
    pull(store, first, PATIENT, Platform.host()).release()
    since = len(proxy.seen)
    artifact = pull(store, second, PATIENT, Platform.host(), lazily=True)
    assert artifact.source is not None
    assert artifact.booted_kernel == store.blob_path(Digest.of(ELF))
    assert not any(str(VMLINUX.descriptor.digest) in path for _, path, _ in proxy.seen[since:])
    artifact.release()


def test_a_config_that_is_missing_ends_the_request_for_the_vmlinux(
    store: Store, proxy: FaultProxy, booted: Sample
) -> None:
    config = ArtifactManifest.parse(booted.artifact.manifest).config
    proxy.add(Fault("status", f"/blobs/{config.digest}", ALWAYS, status=404))
    proxy.add(Fault("stall", f"/blobs/{VMLINUX.descriptor.digest}", ALWAYS, after=0, seconds=600))
    with pytest.raises(RegistryError, match="404"):
        pull(store, parse_reference(f"{proxy.name}/lazy/booted:v1"), PATIENT, Platform.host(), lazily=True)
    assert sum(str(VMLINUX.descriptor.digest) in path for _, path, _ in proxy.seen) == 1


@pytest.mark.usefixtures("booted")
@pytest.mark.parametrize("kind", ["wrong", "short", "reset", "status"])
def test_a_vmlinux_that_fails_at_first(store: Store, proxy: FaultProxy, kind: Kind) -> None:
    """It is asked for again where that helps, else there is one error, and nothing has its name."""
    proxy.add(Fault(kind, f"/blobs/{VMLINUX.descriptor.digest}", 1, after=20))
    reference = parse_reference(f"{proxy.name}/lazy/booted:v1")
    if kind == "wrong":
        with pytest.raises((BadInput, DigestMismatch), match=r"vmlinux|blob"):
            pull(store, reference, PATIENT, Platform.host(), lazily=True)
        assert not store.blob_path(Digest.of(ELF)).exists()
    artifact = pull(store, reference, PATIENT, Platform.host(), lazily=True)
    assert artifact.vmlinux is not None
    assert artifact.vmlinux.read_bytes() == ELF
    artifact.release()


@pytest.mark.usefixtures("booted")
def test_another_repository_shows_that_it_has_the_kernel(store: Store, proxy: FaultProxy) -> None:
    """Although the store has it, and the disk's server fetches from the first repository."""
    proxy.pause_s = 0.005
    first, other = (
        pull(store, parse_reference(f"{proxy.name}/lazy/{name}:v1"), PATIENT, Platform.host(), lazily=True)
        for name in ("booted", "other")
    )
    assert first.source is not None
    assert other.source is not None
    machine = Machine(store, first.source)
    until(lambda: store.blob_path(BOOTED_KERNEL).exists())
    proxy.add(Fault("status", f"/lazy/other/blobs/{BOOTED_KERNEL}", ALWAYS, status=404))
    with pytest.raises(RegistryError, match="404"):
        enter(store, other.source)
    proxy.faults.clear()
    enter(store, other.source).close()
    proxy.pause_s = 0
    machine.close()
    until(lambda: not server_of(store), 60)
    for each in (first, other):
        each.release()


@pytest.mark.usefixtures("booted")
@pytest.mark.parametrize("kind", ["whole", "wrong", "short", "reset", "stall"])
def test_the_kernel_comes_in_spite_of_a_fault(
    monkeypatch: pytest.MonkeyPatch, store: Store, proxy: FaultProxy, kind: Kind
) -> None:
    """And the name is kept only then."""
    monkeypatch.setattr(agenda, "FIRST_BYTES", 1000)
    proxy.pause_s = 0.05
    path = f"/blobs/{BOOTED_KERNEL}"
    times = ALWAYS if kind == "whole" else 1
    proxy.add(Fault(kind, path, times, after=500, seconds=3))
    reference = parse_reference(f"{proxy.name}/lazy/booted:v1")
    artifact = pull(store, reference, QUICK, Platform.host(), lazily=True)
    assert artifact.source is not None
    machine = Machine(store, artifact.source)
    machine.read(0, 100)
    machine.read(5_000_000, 100)
    assert not list((store.root / "names").iterdir())
    proxy.pause_s = 0
    until(lambda: list((store.root / "names").iterdir()))
    assert store.blob_path(BOOTED_KERNEL).read_bytes() == KERNEL
    asked = [headers.get("Range") for _, at, headers in proxy.seen if path in at]
    assert len(asked) > 1
    machine.close()
    until(lambda: not server_of(store), 60)
    artifact.release()


@pytest.mark.usefixtures("booted")
def test_a_pull_that_joins_fetches_nothing_itself(store: Store, proxy: FaultProxy) -> None:
    """Also not the kernel, which the server fetches as well."""
    reference = parse_reference(f"{proxy.name}/lazy/booted:v1")
    artifact = pull(store, reference, PATIENT, Platform.host(), lazily=True)
    assert artifact.source is not None
    proxy.pause_s = 0.01
    machine = Machine(store, artifact.source)
    machine.read(5_000_000, 100)
    since = len(proxy.seen)
    complete = pull(store, reference, PATIENT, Platform.host())
    assert complete.kernel == store.blob_path(BOOTED_KERNEL)
    assert proxy.bytes_of(str(BOOTED_KERNEL)) == len(KERNEL)
    assert not any(str(VMLINUX.descriptor.digest) in path for _, path, _ in proxy.seen[since:])
    machine.close()
    until(lambda: not server_of(store), 60)
    for each in (artifact, complete):
        each.release()


@pytest.mark.usefixtures("booted")
def test_a_kept_sandbox_starts_again_before_its_artifact_has_a_name(store: Store, proxy: FaultProxy) -> None:
    """It knows how the registry is reached, also when the name that was asked for is gone."""
    reference = parse_reference(f"{proxy.name}/lazy/booted:v1")
    artifact = pull(store, reference, PATIENT, Platform.host(), lazily=True)
    assert not list((store.root / "names").iterdir())
    spec = spec_of("kept", artifact)._replace(reference=str(reference), plain_http=True, registry_ca_file="/ca.pem")
    for path, _ in list(names.asked(store)):
        path.unlink()
    again = StoredArtifact.kept(store, spec)
    assert again.source is not None
    assert again.source.options == PATIENT._replace(ca_file=Path("/ca.pem"))
    for each in (artifact, again):
        each.release()


def test_how_the_registry_is_reached_is_in_the_state(tmp_path: Path) -> None:
    spec = Spec(
        "a", "x/y:1", "sha256:" + "0" * 64, "0" * 64, "0" * 64, None, None, 1, 64, 1, plain_http=True,
        registry_ca_file="/ca.pem",
    )  # fmt: skip
    raw = state_json({}, spec, pid=0, created=1.0, started=1.0, ended=None, status=None, error="")
    assert parse(json.dumps(raw).encode(), tmp_path / "a", running=False).spec == spec
