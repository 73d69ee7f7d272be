"""The one way to open a published artifact: what it gives, what it fetches, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagetool.targets.open import open_target
from rootdisk.artifact.format import CHUNKS_TYPE, NotAnArtifact
from rootdisk.artifact.published import open_artifact
from rootdisk.errors import BadInput, DigestMismatch
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest, Manifest, Platform, canonical_json
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from tests.support.artifacts import noise, publish, sample
from tests.support.layouts import write_layout
from tests.support.tars import END, file

HERE = Platform.host()


def test_what_an_open_artifact_gives(tmp_path: Path) -> None:
    made = sample(noise(3, 70_000))
    publish(made, f"oci:{tmp_path}/layout:1", RegistryOptions())
    with open_artifact(parse_reference(f"oci:{tmp_path}/layout:1"), HERE) as artifact:
        assert artifact.descriptor.digest == Digest.of(artifact.raw)
        assert artifact.manifest["artifactType"] == "application/vnd.rootdisk.v1"
        assert artifact.index.disk_digest() == artifact.config.disk_digest
        assert artifact.config is artifact.config  # read once
        disk = artifact.disk()
        assert disk.read(0, disk.size) == b"".join(noise(3, 70_000))


def test_blobs_are_read_only_if_they_are_asked_for(tmp_path: Path) -> None:
    publish(sample(noise(1, 9000)), f"oci:{tmp_path}/layout:1", RegistryOptions())
    reference = parse_reference(f"oci:{tmp_path}/layout:1")
    with open_artifact(reference, HERE) as artifact:
        config = artifact.roles.config.digest
    (tmp_path / "layout/blobs/sha256" / config.hex).write_bytes(b"{}")
    with open_artifact(reference, HERE) as artifact, pytest.raises(DigestMismatch):
        _ = artifact.config


def test_the_index_of_another_disk_is_refused(tmp_path: Path) -> None:
    place = f"oci:{tmp_path}/layout"
    for number in (1, 2):
        publish(sample(noise(2, 9000, number)), f"{place}:{number}", RegistryOptions())
    found = {}
    for number in (1, 2):
        with open_artifact(parse_reference(f"{place}:{number}"), HERE) as artifact:
            found[number] = artifact
    mixed = Manifest.parse(found[1].raw)
    layers = tuple(found[2].roles.chunks if layer.media_type == CHUNKS_TYPE else layer for layer in mixed.layers)
    target = open_target(parse_reference(f"{place}:3"))
    target.push_manifest(canonical_json(mixed._replace(layers=layers).to_json()), OCI_MANIFEST, ("3",))
    target.close()
    with open_artifact(parse_reference(f"{place}:3"), HERE) as artifact, pytest.raises(DigestMismatch, match="index"):
        _ = artifact.index


def test_a_config_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    place = f"oci:{tmp_path}/layout"
    publish(sample(noise(1, 9000)), f"{place}:1", RegistryOptions())
    with open_artifact(parse_reference(f"{place}:1"), HERE) as artifact:
        manifest = Manifest.parse(artifact.raw)
    config = Descriptor(manifest.config.media_type, manifest.config.digest, 1 << 40)
    target = open_target(parse_reference(f"{place}:2"))
    target.push_manifest(canonical_json(manifest._replace(config=config).to_json()), OCI_MANIFEST, ("2",))
    target.close()
    with open_artifact(parse_reference(f"{place}:2"), HERE) as artifact, pytest.raises(BadInput, match="allowed"):
        _ = artifact.config


def test_an_image_is_not_an_artifact(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", "t", [file(b"f", b"1") + END])
    with (
        pytest.raises(NotAnArtifact, match="build one from it: imagetool build"),
        open_artifact(parse_reference(f"oci:{tmp_path}/image:t"), Platform.host()),
    ):
        pass
