"""`imagetool sign`: every kind of key, into registries, layouts and archives, and only what has been verified."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from imagetool.build.cached_artifact import prune
from imagetool.cli import main as imagetool
from imagetool.signing.sign import sign
from imagetool.targets.attach import attach
from imagetool.targets.copy import copy
from imagetool.targets.index import make_index
from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference
from rootdisk.places import open_repository
from runner.cli import main as runner
from tests.support.artifacts import noise, publish, sample
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.signing import Keys, cosign_key, make_keys, signed_by, write_policy

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]
MADE = sample(noise(3, 64 << 10, seed=31))
OTHER = sample(noise(2, 64 << 10, seed=32))
Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ROOTDISK_SIGN_PASSPHRASE", "COSIGN_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def layout(tmp_path: Path) -> str:
    publish(MADE, f"oci:{tmp_path}/layout:1", None)  # type: ignore[arg-type]
    return f"oci:{tmp_path}/layout:1"


def pull(name: str, keys: Keys, folder: Path, *options: str, **identity: str) -> int:
    policy = write_policy(folder / "policy.json", signed_by(keys, **identity))
    return runner(["pull", *options, "--policy", str(policy), name])


@pytest.mark.parametrize("kind", ["ecdsa", "ed25519"])
def test_each_kind_of_key(
    kind: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    plain = make_keys(tmp_path / "plain", kind=kind)
    secret = make_keys(tmp_path / "secret", kind=kind, passphrase=b"a passphrase")
    cosign = cosign_key(tmp_path / "cosign", b"a passphrase", kind)
    (tmp_path / "passphrase").write_text("a passphrase\n")
    assert imagetool(["sign", "--key", str(secret.private), layout]) == 2
    assert "it is encrypted" in capsys.readouterr().err
    (tmp_path / "wrong").write_text("another\n")
    for keys in (secret, cosign):
        assert (
            imagetool(["sign", "--key", str(keys.private), "--passphrase-file", str(tmp_path / "wrong"), layout]) == 2
        )
        said = capsys.readouterr().err
        assert "passphrase" in said
        assert said.count("\n") == 1
    assert imagetool(["sign", "--key", str(plain.private), layout]) == 0
    assert imagetool(["sign", "--key", str(secret.private), "--passphrase-file", f"{tmp_path}/passphrase", layout]) == 0
    monkeypatch.setenv("ROOTDISK_SIGN_PASSPHRASE", "a passphrase")
    monkeypatch.setenv("A_KEY", cosign.private.read_text())
    assert imagetool(["sign", "--key", "env://A_KEY", layout]) == 0
    for keys in (plain, secret, cosign):
        assert pull(layout, keys, tmp_path) == 0
    assert pull(layout, make_keys(tmp_path / "other"), tmp_path) == 125


def test_a_command_that_signs(layout: str, tmp_path: Path, capsys: Said) -> None:
    """As for a key in a KMS; what it writes has to be a signature of the public key."""
    keys = make_keys(tmp_path / "kms")
    command = f"openssl dgst -sha256 -sign {shlex.quote(str(keys.private))}"
    words = ["sign", "--public-key", str(keys.public), layout, "--key-command"]
    assert imagetool([*words, command]) == 0
    assert pull(layout, keys, tmp_path) == 0
    for wrong, why in (("cat", "not a signature"), ("false", "failed with 1"), ("/no/such", "No such file")):
        capsys.readouterr()
        assert imagetool([*words[:2], str(make_keys(tmp_path / "fresh").public), layout, "--key-command", wrong]) != 0
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"), [("x", "cannot be read"), ("-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----\nx\n", "not JSON")]
)
def test_what_is_not_a_key(text: str, why: str, layout: str, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "key").write_text(text)
    (tmp_path / "passphrase").write_text("x")
    words = ["sign", "--key", str(tmp_path / "key"), "--passphrase-file", str(tmp_path / "passphrase"), layout]
    assert imagetool(words) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("formats", ["bundle", "simple", "both"])
def test_signatures_travel(registry: RunningRegistry, tmp_path: Path, formats: str, capsys: Said) -> None:
    """Registry, layout, archive, and another registry's repository; and they do not if that is asked for."""
    keys = make_keys(tmp_path / "keys")
    first = f"{registry.name}/travel/{formats}:1"
    publish(MADE, first, registry.options)
    http = ["--plain-http"]
    assert imagetool(["sign", *http, "--key", str(keys.private), "--format", formats, first]) == 0
    (tmp_path / "sbom").write_text("{}")
    attached = attach(first, tmp_path / "sbom", "application/spdx+json", registry.options)
    ways = [f"oci:{tmp_path}/copy:1", f"oci-archive:{tmp_path}/copy.tar:1", f"{registry.name}/travelled/{formats}:1"]
    source = first
    for target in ways:
        copy(source, target, registry.options)
        capsys.readouterr()
        assert imagetool(["signatures", "--json", *http, "--key", str(keys.public), target]) == 0
        found = json.loads(capsys.readouterr().out)
        assert len(found) == (2 if formats == "both" else 1)
        assert all(item["verified"] and item["identity"] == first for item in found)
        source = target
    identity = {"type": "exactReference", "dockerReference": first}
    assert pull(f"oci:{tmp_path}/copy:1", keys, tmp_path, **identity) == 0
    assert pull(ways[-1], keys, tmp_path, *http, **identity) == 0
    repository = open_repository(parse_reference(ways[-1]), registry.options)
    assert [item.digest for item in repository.referrers(MADE.artifact.descriptor.digest, "application/spdx+json")] == [
        attached
    ]
    repository.close()
    assert imagetool(["copy", *http, "-q", "--no-referrers", first, f"oci:{tmp_path}/bare:1"]) == 0
    assert pull(f"oci:{tmp_path}/bare:1", keys, tmp_path, **identity) == 125
    assert "it has no signature" in capsys.readouterr().err


def test_an_archive(layout: str, tmp_path: Path) -> None:
    """It is replaced by one with the same content and the signature."""
    keys = make_keys(tmp_path / "keys")
    archive = f"oci-archive:{tmp_path}/a.tar:1"
    copy(layout, archive)
    assert imagetool(["sign", "--key", str(keys.private), "--identity", "registry.example/web:1", archive]) == 0
    assert imagetool(["signatures", "--key", str(keys.public), archive]) == 0
    copy(archive, f"oci:{tmp_path}/out:1")
    where = f"oci:{tmp_path}/out:1"
    assert pull(where, keys, tmp_path) == 125  # a layout has no repository to compare with
    assert pull(where, keys, tmp_path, type="exactRepository", dockerRepository="registry.example/web") == 0
    assert pull(where, keys, tmp_path, type="exactRepository", dockerRepository="registry.example/db") == 125
    assert (
        pull(f"oci:{tmp_path}/out", keys, tmp_path, type="exactReference", dockerReference="registry.example/web:1")
        == 0
    )


def test_an_index_and_all_that_it_lists(layout: str, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    index = make_index(f"oci:{tmp_path}/layout:both", [layout])
    signed = sign(parse_reference(f"oci:{tmp_path}/layout:both"), keys.signer)
    assert set(signed) == {index, MADE.artifact.descriptor.digest}
    assert pull(f"oci:{tmp_path}/layout:both", keys, tmp_path) == 0
    assert pull(layout, keys, tmp_path) == 0


def test_nothing_damaged_is_signed(layout: str, tmp_path: Path, capsys: Said) -> None:
    keys = make_keys(tmp_path / "keys")
    blob = tmp_path / "layout/blobs/sha256" / MADE.blob.digest.hex
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.unlink()
    blob.write_bytes(data)
    assert imagetool(["sign", "--key", str(keys.private), layout]) == 1
    assert "got " in capsys.readouterr().err
    assert imagetool(["signatures", "--key", str(keys.public), layout]) == 1


@pytest.mark.parametrize("formats", ["bundle", "simple"])
def test_signing_twice_adds_nothing(registry: RunningRegistry, tmp_path: Path, formats: str, capsys: Said) -> None:
    keys = make_keys(tmp_path / "keys")
    name = f"{registry.name}/twice/{formats}:1"
    publish(MADE, name, registry.options)
    for _ in range(2):
        sign(parse_reference(name), keys.signer, registry.options, formats=formats)  # type: ignore[arg-type]
    sign(parse_reference(name), make_keys(tmp_path / "more").signer, registry.options, formats=formats)  # type: ignore[arg-type]
    assert imagetool(["signatures", "--plain-http", name]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert pull(name, keys, tmp_path, "--plain-http") == 0


def test_a_simple_signature_names_a_repository(layout: str, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    with pytest.raises(BadInput, match="--identity"):
        sign(parse_reference(layout), keys.signer, formats="simple")
    for wrong in ("debian", "registry.example/web@sha256:" + "0" * 64, "oci:x:1", "registry.example/Web"):
        with pytest.raises(BadInput):
            sign(parse_reference(layout), keys.signer, identity=wrong)


@pytest.mark.parametrize("where", ["registry", "layout"])
def test_prune_takes_them_with_it(registry: RunningRegistry, tmp_path: Path, where: str) -> None:
    place = f"{registry.name}/prune/{where}" if where == "registry" else f"oci:{tmp_path}/prune"
    keys = make_keys(tmp_path / "keys")
    for made, version in ((MADE, "1"), (OTHER, "2")):
        publish(made, f"{place}:{version}", registry.options)
        identity = "registry.example/web"
        sign(parse_reference(f"{place}:{version}"), keys.signer, registry.options, formats="both", identity=identity)
    prune(parse_reference(place), registry.options, 1, delete=True)
    repository = open_repository(parse_reference(place), registry.options)
    gone, kept = MADE.artifact.descriptor.digest, OTHER.artifact.descriptor.digest
    assert repository.referrers(gone) == ()
    assert repository.current(f"sha256-{gone.hex}.sig") is None
    assert len(repository.referrers(kept)) == 1
    assert repository.current(f"sha256-{kept.hex}.sig") is not None
    repository.close()


def test_without_cryptography(layout: str, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner's own needs are two; a policy that asks for signatures says what to install, and accepts nothing."""
    keys = make_keys(tmp_path / "keys")
    assert imagetool(["sign", "--key", str(keys.private), layout]) == 0

    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert pull(layout, keys, tmp_path) == 125
    assert "pip install 'rootdisk[verify]'" in capsys.readouterr().err
    assert shutil.which("openssl")
