"""`sign`, `policy` and `source_policy` of images.toml: what is published is signed, and only what is signed is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagetool.signing.provenance import PREDICATE
from imagetool.signing.sign import sign
from imagetool.targets.index import make_index
from rootdisk.artifact.signatures import signatures_of
from rootdisk.oci.documents import Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.places import open_repository
from rootdisk.trust.bundle import SIGN_PREDICATE, Bundle, Statement
from rootdisk.trust.signatures import Signature
from tests.support.commands import Runner
from tests.support.layouts import write_layout
from tests.support.machines import Machine
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.signing import Keys, make_keys, signed_by, write_policy
from tests.support.tars import END, directory, file

pytestmark = needs_registry


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path / "keys")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    for architecture in ("amd64", "arm64"):
        layers = [directory(b"etc") + file(b"etc/f", architecture.encode() * 9000) + END]
        write_layout(tmp_path / "source", f"t-{architecture}", layers, architecture=architecture)
    write_layout(tmp_path / "source", "t", [directory(b"etc") + file(b"etc/f", b"1" * 9000) + END])
    return tmp_path / "source"


def test_what_is_published_is_signed(
    tmp_path: Path, layout: Path, keys: Keys, registry: RunningRegistry, runner: Runner
) -> None:
    """A clean machine takes it by its key; one with another key, or another policy, builds it."""
    target = f"{registry.name}/signed/app"
    signing = f'[image.app.sign]\nkey = "{keys.private}"\nformat = "both"\nprovenance = true\n'
    first = Machine(tmp_path / "first", layout, target)
    first.add(signing)
    status, said = first.build()
    assert status == 0, said
    policy = write_policy(tmp_path / "policy.json", signed_by(keys))
    pull = ("pull", "--plain-http", "--policy", str(policy))
    done = runner(*pull, f"{target}:1")
    assert done.returncode == 0, done.stderr

    repository = open_repository(parse_reference(f"{target}:1"), registry.options)
    bundles = [
        found for found in signatures_of(repository, Digest.parse(first.digest())) if isinstance(found, Signature)
    ]
    repository.close()
    told = [
        Statement.parse(b.payload_type, b.payload)
        for b in (Bundle.parse(f.document) for f in bundles if not f.signature)
    ]
    assert sorted(one.predicate_type for one in told) == [SIGN_PREDICATE, PREDICATE]
    assert all(str(one.digest) == first.digest() for one in told)

    second = Machine(tmp_path / "second", layout, target)
    second.add(signing)
    status, said = second.build()
    assert status == 0, said
    assert not second.made
    assert second.digest() == first.digest()

    other = make_keys(tmp_path / "other")
    for name, text in (
        ("key", f'[image.app.sign]\nkey = "{other.private}"\n'),
        ("policy", ""),
    ):
        machine = Machine(tmp_path / name, layout, target)
        refusing = write_policy(tmp_path / "refusing.json", signed_by(make_keys(tmp_path / "third")))
        machine.add(text, before="" if text else f'policy = "{refusing}"\n')
        status, said = machine.build()
        assert status == 0, said
        assert "is not accepted, so the disk is built" in said
        assert machine.made
        assert machine.digest() == first.digest()


@pytest.mark.nightly  # two platforms, half a minute
def test_an_index_is_signed_before_it_has_its_name(
    tmp_path: Path, layout: Path, keys: Keys, registry: RunningRegistry, runner: Runner
) -> None:
    index = f"oci:{layout}:both"
    make_index(index, [f"oci:{layout}:t-amd64", f"oci:{layout}:t-arm64"])
    target = f"{registry.name}/signed/several"
    machine = Machine(tmp_path / "machine", layout, target)
    text = (machine.place / "images.toml").read_text()
    text = text.replace(f"oci:{layout}:t", index).replace("kernel =", 'platforms = ["amd64", "arm64"]\nkernel =')
    (machine.place / "images.toml").write_text(text)
    machine.add(f'[image.app.sign]\nkey = "{keys.private}"\n')
    status, said = machine.build()
    assert status == 0, said
    policy = write_policy(tmp_path / "policy.json", signed_by(keys))
    for platform in ("linux/amd64", "linux/arm64"):
        done = runner("pull", "--plain-http", "--policy", str(policy), "--platform", platform, f"{target}:1")
        assert done.returncode == 0, done.stderr


def test_a_source_that_is_not_signed(tmp_path: Path, layout: Path, keys: Keys, registry: RunningRegistry) -> None:
    machine = Machine(tmp_path / "machine", layout, f"{registry.name}/signed/sourced")
    policy = write_policy(tmp_path / "policy.json", {"type": "insecureAcceptAnything"}, oci={"": [signed_by(keys)]})
    machine.add("", before=f'policy = "{policy}"\nsource_policy = true\n')
    status, said = machine.build()
    assert status != 0
    assert "it has no signature" in said
    assert "Traceback" not in said
    sign(parse_reference(f"oci:{layout}:t"), keys.signer)
    status, said = machine.build()
    assert status == 0, said
