"""A registry as the build cache of clean machines: found, believed only when it is right; and tags that do not move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagetool.targets.index import make_index
from imagetool.targets.open import open_target
from rootdisk.artifact.format import CONFIG_TYPE, ArtifactConfig
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest, Index, Manifest, canonical_json
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import read_blob
from rootdisk.places import open_repository
from tests.support.layouts import write_layout
from tests.support.machines import Machine
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.tars import END, directory, file

pytestmark = needs_registry


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    layers = [directory(b"etc") + file(b"etc/f", b"1" * 9000) + END, file(b"app", b"2") + END]
    write_layout(tmp_path / "source", "t", layers)
    return tmp_path / "source"


@pytest.mark.nightly
def test_several_platforms_have_one_name(tmp_path: Path, registry: RunningRegistry) -> None:
    """A disk each under its key, and an index that has the version, moves by --force only and is what a clean machine finds."""
    for architecture in ("amd64", "arm64"):
        layers = [directory(b"etc") + file(b"etc/f", architecture.encode()) + END]
        write_layout(tmp_path / architecture, "t", layers, architecture=architecture)
    make_index(f"oci:{tmp_path}/both:t", [f"oci:{tmp_path}/arm64:t", f"oci:{tmp_path}/amd64:t"])
    target = f"{registry.name}/platforms/app"

    def machine(name: str, env: str) -> Machine:
        made = Machine(tmp_path / name, tmp_path / "both", target, env)
        described = made.place / "images.toml"
        text = described.read_text().replace("kernel =", 'platforms = ["linux/amd64", "linux/arm64"]\nkernel =')
        described.write_text(text)
        return made

    first = machine("first", "1")
    status, said = first.build()
    assert status == 0, said
    assert first.build()[1].count("-- ") >= said.count(".  ") > 0  # nothing again
    reference = parse_reference(target)
    place = open_target(reference, registry.options)
    tags = place.tags()
    assert len(tags) == 3
    assert tags["1"] == Digest.parse(first.digest())
    repository = open_repository(reference, registry.options)
    listed = Index.parse(repository.manifest(tags["1"])).manifests
    assert {str(item.platform): item.digest in tags.values() for item in listed} == {
        "linux/amd64": True,
        "linux/arm64": True,
    }
    assert {item.artifact_type for item in listed} == {"application/vnd.rootdisk.v1"}

    second = machine("second", "1")
    assert second.build()[0] == 0
    assert not second.made
    assert (second.digest(), place.tags()) == (first.digest(), tags)

    other = machine("other", "2")
    status, said = other.build()
    assert status != 0
    assert "raise the version, or move the tag with --force" in said
    assert place.tags()["1"] == tags["1"]
    assert other.build("index:app", "--force")[0] == 0
    assert place.tags()["1"] == Digest.parse(other.digest()) != tags["1"]
    status, said = other.build("prune:app-amd64", "--delete")
    assert (status, said.count("removed")) == (0, 2), said  # the keys of the first
    assert len(place.tags()) == 3


def test_a_clean_machine_builds_nothing(tmp_path: Path, layout: Path, registry: RunningRegistry) -> None:
    target = f"{registry.name}/cached/a"
    first, second = (Machine(tmp_path / name, layout, target) for name in ("first", "second"))
    assert first.build()[0] == 0
    assert first.made
    status, said = second.build()
    assert status == 0, said
    assert f"has been built before: {target}@{first.digest()}" in said
    assert not second.made
    assert second.digest() == first.digest()
    assert second.build()[1].count("-- ") >= 5  # and doit knows that it is done
    # A third publishes what it finds in one place to another too.
    third = Machine(tmp_path / "third", layout, target)
    text = (third.place / "images.toml").read_text()
    (third.place / "images.toml").write_text(
        text.replace(f'"{target}"', f'["{target}", "{registry.name}/cached/other"]')
    )
    assert third.build()[0] == 0
    assert not third.made
    repository = open_repository(parse_reference(f"{registry.name}/cached/other"), registry.options)
    assert str(repository.resolve("1").digest) == first.digest()


def forged(registry: RunningRegistry, target: str, key: str, how: str) -> None:
    """Another thing under the key's tag: a config that says other inputs, or the right ones and another disk."""
    repository = open_repository(parse_reference(target), registry.options)
    found = repository.resolve(key)
    manifest = Manifest.parse(repository.manifest(found))
    config = ArtifactConfig.parse(read_blob(repository, manifest.config, 1 << 20))
    if how == "inputs":
        config = config._replace(inputs={**config.inputs, "source": "sha256:" + "0" * 64})
    elif how == "key":
        config = config._replace(derivation_key="0" * 64)
    else:
        config = config._replace(disk_digest=Digest.of(b"another disk"))
    place = open_target(parse_reference(target), registry.options)
    raw = canonical_json(config.to_json())
    described = Descriptor(CONFIG_TYPE, Digest.of(raw), len(raw))
    place.push_blob(described, lambda: iter([raw]))
    place.push_manifest(canonical_json(manifest._replace(config=described).to_json()), OCI_MANIFEST, (key,))
    place.close()


@pytest.mark.parametrize("how", ["inputs", "key", "disk"])
def test_a_forged_key_is_found_out(tmp_path: Path, layout: Path, registry: RunningRegistry, how: str) -> None:
    target = f"{registry.name}/forged/{how}"
    first, second = (Machine(tmp_path / name, layout, target) for name in ("first", "second"))
    assert first.build()[0] == 0
    key = json.loads((first.place / "cache/app/artifact.json").read_bytes())["key"]
    forged(registry, target, key, how)
    status, said = second.build()
    assert status == 0, said
    assert f"app: {target}:{key} is not accepted, so the disk is built" in said
    assert second.made
    assert second.digest() == first.digest()
    repository = open_repository(parse_reference(target), registry.options)
    assert str(repository.resolve(key).digest) == first.digest()  # and mended


def test_a_version_does_not_move(tmp_path: Path, layout: Path, registry: RunningRegistry) -> None:
    target = f"{registry.name}/versions/a"
    first = Machine(tmp_path / "first", layout, target)
    second = Machine(tmp_path / "second", layout, target, env="2")
    assert first.build()[0] == 0
    status, said = second.build()
    assert status != 0
    assert f"{target}:1 is {first.digest().partition(':')[2][:12]} already" in said
    assert "--force" in said
    repository = open_repository(parse_reference(target), registry.options)
    assert str(repository.resolve("1").digest) == first.digest()
    status, said = second.build("publish:app", "--force")
    assert status == 0, said
    assert str(repository.resolve("1").digest) == second.digest() != first.digest()


def test_a_registry_that_is_not_there(tmp_path: Path, layout: Path) -> None:
    machine = Machine(tmp_path / "machine", layout, "127.0.0.1:1/a/b")
    status, said = machine.build()
    assert status != 0
    assert "connection refused" in said
    assert "Traceback" not in said
