"""A registry that names what the store has from another one: it has to have it, too. And what it says of it has to be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagetool.packing.manifest import Blob, assemble
from imagetool.targets.open import open_target
from rootdisk.artifact.format import CHUNKS_TYPE, DISK_TYPE, KERNEL_TYPE, ArtifactConfig
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import OCI_MANIFEST, Digest, Platform, canonical_json
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Store
from tests.support.artifacts import BARE, INITRAMFS, KERNEL, Sample, noise, publish, sample, with_boot
from tests.support.faults import ALWAYS, Fault, FaultProxy
from tests.support.registry import RunningRegistry, needs_registry

pytestmark = needs_registry

PLAIN = RegistryOptions(plain_http=True)
CHUNK = 64 << 10
OTHER = sample(noise(3, CHUNK, seed=5))


MADE = with_boot(BARE)


@pytest.fixture(scope="module")
def registry(registry: RunningRegistry) -> RunningRegistry:
    publish(MADE, f"{registry.name}/private/app:1", registry.options)
    publish(with_boot(BARE, labels={"v": "2"}), f"{registry.name}/private/app:2", registry.options)
    publish(with_boot(BARE, labels={"v": "3"}), f"{registry.name}/honest/copy:3", registry.options)
    return registry


@pytest.fixture
def proxy(nobody: None, store: Store, registry: RunningRegistry, proxy: FaultProxy) -> FaultProxy:
    got(f"{registry.name}/private/app:1")
    return proxy


def got(name: str) -> StoredArtifact:
    local = pull(Store.open(), parse_reference(name), PLAIN, Platform.host())
    local.release()
    return local


def serve_manifest(proxy: FaultProxy, raw: bytes) -> None:
    proxy.add(
        Fault("status", "/evil/x/manifests/", ALWAYS, status=200, headers={"Content-Type": OCI_MANIFEST}, body=raw)
    )


def serve_blob(proxy: FaultProxy, data: bytes) -> None:
    proxy.add(Fault("status", f"/evil/x/blobs/{Digest.of(data)}", ALWAYS, status=200, body=data))


def refused(proxy: FaultProxy) -> str:
    with pytest.raises(RootdiskError) as failed:
        got(f"{proxy.name}/evil/x:1")
    with pytest.raises(RootdiskError):  # and is not remembered
        got(f"{proxy.name}/evil/x:1")
    assert str(failed.value).isprintable()
    return str(failed.value)


def blob_of(made: Sample, media_type: str) -> bytes:
    data = next(blob.data for blob in made.artifact.blobs if blob.descriptor.media_type == media_type)
    assert isinstance(data, bytes)
    return data


def config_of(made: Sample) -> bytes:
    return next(b.data for b in made.artifact.blobs if b.descriptor.media_type.endswith("json"))  # type: ignore[return-value]


def test_a_registry_that_has_nothing(proxy: FaultProxy) -> None:
    serve_manifest(proxy, MADE.artifact.manifest)
    assert "404" in refused(proxy)


EVIL = with_boot(BARE, cmdline="init=/bin/evil")


@pytest.mark.parametrize("missing", ["kernel", "initramfs", "index", "disk", "nothing"])
def test_every_part_has_to_be_there(proxy: FaultProxy, missing: str) -> None:
    parts = {
        "config": config_of(EVIL),
        "kernel": KERNEL,
        "initramfs": INITRAMFS,
        "index": blob_of(EVIL, CHUNKS_TYPE),
        "disk": blob_of(EVIL, DISK_TYPE),
    }
    serve_manifest(proxy, EVIL.artifact.manifest)
    for name, data in parts.items():
        if name != missing:
            serve_blob(proxy, data)
    if missing == "nothing":
        assert got(f"{proxy.name}/evil/x:1").disk.read_bytes() == MADE.disk
    else:
        assert "404" in refused(proxy)


def test_the_index_of_another_disk(proxy: FaultProxy) -> None:
    index = Blob.of_bytes(CHUNKS_TYPE, OTHER.index.pack())
    config = ArtifactConfig.parse(config_of(MADE))
    disk = [blob for blob in MADE.artifact.blobs if blob.descriptor.media_type == DISK_TYPE]
    artifact = assemble(config, disk, index)
    serve_manifest(proxy, artifact.manifest)
    serve_blob(proxy, OTHER.index.pack())
    serve_blob(proxy, config_of(MADE))
    assert "not that of the disk" in refused(proxy)


@pytest.mark.parametrize("path", ["private/app", "evil/x"])
def test_sizes_that_are_not_those_of_the_store(proxy: FaultProxy, path: str) -> None:
    """The repository that has it all is not believed either."""
    wrong = with_boot(BARE, disk_size=BARE.index.disk_size + 65536)
    manifest = json.loads(MADE.artifact.manifest)
    for layer in manifest["layers"]:
        if layer["mediaType"] == KERNEL_TYPE:
            layer["size"] += 1
    for raw, config, words in (
        (wrong.artifact.manifest, config_of(wrong), "not that of the disk|bytes in the store"),
        (canonical_json(manifest), config_of(MADE), "bytes in the store|bytes, not|expected"),
    ):
        proxy.faults.clear()
        proxy.add(
            Fault("status", f"/{path}/manifests/", ALWAYS, status=200, headers={"Content-Type": OCI_MANIFEST}, body=raw)
        )
        for data in (config, KERNEL, INITRAMFS, blob_of(MADE, CHUNKS_TYPE), blob_of(MADE, DISK_TYPE)):
            proxy.add(Fault("status", f"/{path}/blobs/{Digest.of(data)}", ALWAYS, status=200, body=data))
        with pytest.raises(RootdiskError, match=words):
            got(f"{proxy.name}/{path}:1")


def test_an_honest_copy_is_not_fetched_again(proxy: FaultProxy, registry: RunningRegistry) -> None:
    """Of the disk its index and one chunk are read, of the boot files all, once for each repository."""
    local = got(f"{proxy.name}/honest/copy:3")
    assert local.disk.read_bytes() == MADE.disk
    assert 0 < proxy.bytes_of(MADE.path) < MADE.blob.size / 2
    assert proxy.bytes_of(str(Digest.of(KERNEL))) == len(KERNEL)
    seen = len(proxy.seen)
    got(f"{proxy.name}/honest/copy:3")
    assert [method for method, _, _ in proxy.seen[seen:]] == ["GET"]  # what the tag names


def test_the_next_version_in_the_same_repository(proxy: FaultProxy) -> None:
    got(f"{proxy.name}/private/app:1")
    proxy.served.clear()
    got(f"{proxy.name}/private/app:2")
    assert not proxy.bytes_of(MADE.path)
    assert not proxy.bytes_of(str(Digest.of(KERNEL)))
    assert not proxy.bytes_of(str(Digest.of(INITRAMFS)))


def test_a_layout_that_has_nothing(proxy: FaultProxy, tmp_path: Path) -> None:
    reference = f"oci:{tmp_path / 'layout'}:1"
    target = open_target(parse_reference(reference), PLAIN)
    for blob in EVIL.artifact.blobs:
        assert isinstance(blob.data, bytes)
        target.push_blob(blob.descriptor, lambda data=blob.data: iter([data]))  # type: ignore[misc]
    target.push_manifest(EVIL.artifact.manifest, OCI_MANIFEST, ("1",))
    target.close()
    index = tmp_path / "layout/blobs/sha256" / Digest.of(blob_of(EVIL, CHUNKS_TYPE)).hex
    kept = index.read_bytes()
    index.unlink()
    with pytest.raises(RootdiskError, match="No such file"):
        got(reference)
    index.write_bytes(kept)
    assert got(reference).disk.read_bytes() == MADE.disk
