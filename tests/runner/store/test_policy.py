"""What a policy refuses, with the registry's log as witness: not a byte of disk, kernel or initramfs is asked for."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagetool.signing.sign import bundle_of, push_bundle, sign, signed_statement
from imagetool.targets.copy import copy
from imagetool.targets.index import make_index
from imagetool.targets.open import open_target
from rootdisk.artifact.format import DISK_TYPE
from rootdisk.oci.documents import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, Descriptor, Digest, Manifest, canonical_json
from rootdisk.oci.reference import parse_reference
from rootdisk.places import open_repository
from rootdisk.trust.bundle import BUNDLE_TYPE, IN_TOTO_TYPE, SIGN_PREDICATE, Bundle, Statement, pre_authentication
from rootdisk.trust.signatures import Claim, Signature
from runner.cli import main
from runner.store.store import Store
from tests.support.artifacts import publish
from tests.support.commands import Runner
from tests.support.faults import ALWAYS, Fault
from tests.support.registry import needs_registry
from tests.support.serving import mirrored, serving
from tests.support.signed_places import OTHER, Place, boots_up_to_the_machine, listing, referrer
from tests.support.signing import make_keys, signed_by, write_policy

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]
Said = pytest.CaptureFixture[str]


@pytest.mark.parametrize("kind", ["ecdsa", "ed25519"])
@pytest.mark.parametrize("formats", ["bundle", "simple", "both"])
def test_signed(place: Place, formats: Any, kind: str, tmp_path: Path, capsys: Said) -> None:
    place.keys = make_keys(tmp_path / "other", kind=kind)
    write_policy(place.policy, signed_by(place.keys))
    place.refused(capsys, "has no signature")
    place.sign(formats=formats)
    assert place.run() == 0
    before = len(place.proxy.seen)
    assert place.run() == 0  # what was said is kept: nothing but the tag is asked for
    assert [path for _, path, _ in place.proxy.seen[before:]] == [f"/v2/{place.repository}/manifests/1"]


def test_unsigned(place: Place, capsys: Said) -> None:
    place.refused(capsys, "is not signed as", "it has no signature", str(place.policy))
    place.refused(capsys, "it has no signature", command="boot")


def test_another_key(place: Place, tmp_path: Path, capsys: Said) -> None:
    place.sign(make_keys(tmp_path / "other"), formats="both")
    place.refused(capsys, "a signature of another key")


def test_a_bundle_of_another_digest(place: Place, capsys: Said) -> None:
    place.push(place.claim(digest=Digest.of(b"something else")))
    place.refused(capsys, "a signature of another digest")


def test_a_changed_payload(place: Place, capsys: Said) -> None:
    good = place.claim(digest=Digest.of(b"something else"))
    changed = place.claim()
    place.push(good._replace(payload=changed.payload))
    place.refused(capsys, "another key, or of something changed since")


@pytest.mark.parametrize("how", ["subjects", "algorithms"])
def test_a_subject_of_two_digests(place: Place, how: str, capsys: Said) -> None:
    value = json.loads(Statement(place.digest, place.name, SIGN_PREDICATE, {}).to_json())
    if how == "subjects":
        value["subject"] *= 2
        value["subject"][1] = {"name": place.name, "digest": {"sha256": "0" * 64}}
    else:
        value["subject"][0]["digest"]["sha512"] = "0" * 128
    payload = canonical_json(value)
    signature = place.keys.signer.sign(pre_authentication(IN_TOTO_TYPE, payload))
    place.push(Bundle(IN_TOTO_TYPE, payload, signature))
    place.refused(capsys, "2 ", "a signature is about one digest")


def test_an_attestation_is_not_a_signature(place: Place, capsys: Said) -> None:
    statement = Statement(place.digest, place.name, "https://slsa.dev/provenance/v1", {})
    place.push(signed_statement(statement, place.keys.signer))
    place.refused(capsys, "https://slsa.dev/provenance/v1", "which is not a signature")


def test_an_index_for_a_manifest_that_is_not_in_it(place: Place, capsys: Said) -> None:
    """The index is signed well, and the registry gives something else for the tag."""
    repository = place.direct.rpartition(":")[0]
    publish(OTHER, f"{repository}:other", place.registry.options)
    make_index(f"{repository}:both", [f"{repository}:other"], place.registry.options)
    (index, *_) = sign(
        parse_reference(f"{repository}:both"), place.keys.signer, place.registry.options, identity=place.name
    )
    place.push(bundle_of(Claim(index, place.name), place.keys.signer))
    place.refused(capsys, "a signature of another digest")


def test_a_signed_index(place: Place, capsys: Said) -> None:
    """Its signature is enough for what it lists."""
    repository = place.direct.rpartition(":")[0]
    index = make_index(f"{repository}:1", [f"{repository}:1"], place.registry.options)
    target = open_target(parse_reference(place.direct), place.registry.options)
    push_bundle(target, Descriptor(OCI_INDEX, index, 1), bundle_of(Claim(index, place.name), place.keys.signer), "")
    target.close()
    assert place.run() == 0
    place.proxy.seen.clear()
    assert boots_up_to_the_machine(place, capsys)  # what was said is kept
    assert place.proxy.seen == []


def test_another_repository(place: Place, capsys: Said) -> None:
    """Signed for one, published as another: the copy takes its signatures along."""
    place.sign(formats="both")
    elsewhere = f"{place.registry.name}/trust/elsewhere:1"
    copy(place.direct, elsewhere, place.registry.options)
    place.name = f"{place.proxy.name}/trust/elsewhere:1"
    place.refused(capsys, "signed as", "trust/test-another-repository:1, and not as", "trust/elsewhere:1")
    write_policy(
        place.policy,
        signed_by(
            place.keys,
            type="remapIdentity",
            prefix=f"{place.proxy.name}/trust/elsewhere",
            signedPrefix=f"{place.proxy.name}/trust/test-another-repository",
        ),
    )
    assert place.run() == 0


def test_another_tag(place: Place, capsys: Said) -> None:
    place.sign(identity=place.name.replace(":1", ":2"))
    place.refused(capsys, "signed as", "and not as")
    write_policy(place.policy, signed_by(place.keys, type="matchRepository"))
    assert place.run() == 0


@pytest.mark.parametrize("api", [True, False])
def test_thousands_of_referrers(place: Place, api: bool, capsys: Said) -> None:
    body = listing(*map(referrer, range(3000)))
    if api:
        place.proxy.add(Fault("status", path="/referrers/", status=200, body=body, times=ALWAYS))
    else:
        path = f"/manifests/sha256-{place.digest.hex}"
        place.proxy.add(Fault("status", path=path, status=200, body=body, times=ALWAYS))
    place.refused(capsys, "more than 1000 referrers")
    assert len(place.proxy.seen) < 10


def test_too_many_signatures(place: Place, capsys: Said) -> None:
    body = listing(*map(referrer, range(500)))
    place.proxy.add(Fault("status", path="/referrers/", status=200, body=body, times=ALWAYS))
    place.refused(capsys, "more than 64 signatures")
    assert len(place.proxy.seen) < 100


def test_a_bundle_of_100_mb(place: Place, capsys: Said) -> None:
    target = open_target(parse_reference(place.direct), place.registry.options)
    big = Descriptor(BUNDLE_TYPE, Digest.of(b"big"), 100_000_000)
    subject = Descriptor(OCI_MANIFEST, place.digest, len(place.made.artifact.manifest))
    manifest = Manifest(OCI_MANIFEST, BUNDLE_TYPE, Descriptor(OCI_EMPTY, Digest.of(b"{}"), 2), (big,), {}, subject)
    raw = canonical_json(manifest.to_json())
    target.close()
    made = Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw), artifact_type=BUNDLE_TYPE)
    place.proxy.add(
        Fault("status", path="/referrers/", status=200, body=listing(made), times=ALWAYS),
        Fault("status", path=f"/manifests/{made.digest}", status=200, body=raw, times=ALWAYS),
    )
    place.refused(capsys, "100000000 bytes are more than the 1048576 allowed")
    assert not any(str(big.digest) in path for _, path, _ in place.proxy.seen)


@pytest.mark.parametrize("link", ["", "?n=1", "elsewhere", "growing"])
def test_referrers_that_loop(place: Place, link: str, capsys: Said) -> None:
    path = f"/v2/{place.repository}/referrers/{place.digest}"
    if link == "growing":
        for number in range(40):
            headers = {"Link": f'<{path}?page={number}>; rel="next"'}
            place.proxy.add(Fault("status", path="/referrers/", status=200, body=listing(), headers=headers))
    else:
        where = f"http://127.0.0.1:1{path}" if link == "elsewhere" else f"{path}{link}"
        headers = {"Link": f'<{where}>; rel="next"'}
        place.proxy.add(Fault("status", path="/referrers/", status=200, body=listing(), headers=headers, times=ALWAYS))
    place.refused(capsys, "does not end")
    assert len(place.proxy.seen) < 30


def test_a_referrer_of_something_else(place: Place, capsys: Said) -> None:
    """The list says that it is ours, and its subject is another one."""
    other = place.push(place.claim(), Digest.of(b"other"))
    made = Descriptor(OCI_MANIFEST, other, 700, artifact_type=BUNDLE_TYPE)
    place.proxy.add(Fault("status", path="/referrers/", status=200, body=listing(made), times=ALWAYS))
    place.refused(capsys, "is attached to something else")


def test_what_is_in_the_store_is_asked_again(place: Place, tmp_path: Path, capsys: Said) -> None:
    """A policy that came later, a key that was exchanged, a file of the same name with another key in it."""
    assert main(["pull", "--plain-http", place.name]) == 0
    place.proxy.seen.clear()
    write_policy(tmp_path / "reject.json", {"type": "reject"})
    old, place.policy = place.policy, tmp_path / "reject.json"
    place.refused(capsys, "the policy says reject", command="boot")
    place.policy = old
    place.refused(capsys, "has no signature", command="boot")
    place.sign()
    assert place.run() == 0
    new = make_keys(tmp_path / "new")
    write_policy(place.policy, signed_by(new))
    place.proxy.seen.clear()
    place.refused(capsys, "a signature of another key", command="boot")
    write_policy(place.policy, signed_by(new, place.keys))  # rotation: either will do
    place.proxy.add(Fault("status", status=500, times=ALWAYS))  # and the registry is not needed for that
    assert boots_up_to_the_machine(place, capsys)
    place.keys.public.write_bytes(new.public.read_bytes())
    place.proxy.faults.clear()
    place.proxy.seen.clear()
    place.refused(capsys, "a signature of another key", command="boot")


@pytest.mark.parametrize("reaches_the_registry", [True, False])
def test_a_neighbour_without_a_policy(place: Place, reaches_the_registry: bool, tmp_path: Path, capsys: Said) -> None:
    """`runner serve` gives what its store has, signed or not. Who asks it has a policy, and takes signatures from the registry alone."""
    neighbour = Runner(tmp_path / "neighbour")
    assert neighbour("pull", "--plain-http", place.name).returncode == 0
    with serving(neighbour.store) as address:
        mirrored(neighbour, tmp_path, place.proxy.name, address)
        if not reaches_the_registry:
            place.proxy.add(Fault("status", status=403, times=ALWAYS))
        place.proxy.seen.clear()
        capsys.readouterr()
        assert place.run() == 125
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert ("has no signature" in said) is reaches_the_registry
        assert place.asked() == []
        assert not list((tmp_path / "store").glob("disks/*"))
        place.sign()
        assert place.run() == (0 if reaches_the_registry else 125)


def test_what_the_store_remembers_is_no_signature(place: Place, store: Store, capsys: Said) -> None:
    """A kept signature is checked with the key, and a damaged file, or one of another artifact, is none."""
    place.sign()
    assert place.run() == 0
    (kept,) = (store.root / "trust").glob("*.json")
    whole = json.loads(kept.read_text())
    other = [Signature("bundle", place.claim(digest=Digest.of(b"something else")).to_json()).to_json()]
    place.proxy.add(Fault("status", status=403, times=ALWAYS))
    for good in (whole, whole | {"verdicts": {}}):  # then by the kept signature
        kept.write_text(json.dumps(good))
        assert boots_up_to_the_machine(place, capsys)
    of_another = whole | {"verdicts": {}, "signatures": other}
    damaged = [json.dumps(whole | {name: 99}) for name in ("verdicts", "version", "trusted", "signatures")]
    for text in (json.dumps(of_another), *damaged, "{", ""):
        kept.write_text(text)
        assert place.run(command="boot") == 125, text
        said = capsys.readouterr().err
        assert (said.count("\n"), "403" in said) == (1, True), said


def test_the_users_own_policy(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own = tmp_path / "config/rootdisk/policy.json"
    own.parent.mkdir(parents=True)
    write_policy(own, signed_by(place.keys))
    assert main(["pull", "--plain-http", place.name]) == 125
    assert str(own) in capsys.readouterr().err
    own.unlink()
    own.symlink_to("nowhere")  # it is there and cannot be read: nothing is accepted
    assert main(["pull", "--plain-http", place.name]) == 125
    assert "No such file" in capsys.readouterr().err
    assert place.asked() == []


def test_simple_signatures_that_are_not(place: Place, capsys: Said) -> None:
    """The annotation is not base64; the payload is another's."""
    place.sign(formats="simple")
    target = open_target(parse_reference(place.direct), place.registry.options)
    found = json.loads(_raw(place, f"sha256-{place.digest.hex}.sig"))
    found["layers"][0]["annotations"]["dev.cosignproject.cosign/signature"] = "?"
    target.push_manifest(canonical_json(found), OCI_MANIFEST, (f"sha256-{place.digest.hex}.sig",))
    place.refused(capsys, "not base64")
    signature = base64.b64encode(place.keys.signer.sign(b"{}")).decode()
    found["layers"][0]["annotations"]["dev.cosignproject.cosign/signature"] = signature
    target.push_manifest(canonical_json(found), OCI_MANIFEST, (f"sha256-{place.digest.hex}.sig",))
    place.refused(capsys, "a signature of another key")
    target.close()


def _raw(place: Place, tag: str) -> bytes:
    repository = open_repository(parse_reference(place.direct), place.registry.options)
    try:
        return repository.manifest(repository.resolve(tag))
    finally:
        repository.close()


def loaded(*arguments: str, status: int = 0) -> set[str]:
    """Modules that a command of the runner has loaded when it ends with `status`. This machine may have a policy: it is hidden."""
    program = (
        "import sys; from rootdisk.artifact import policies; policies.SYSTEM = (); from runner.cli import main;"
        f" status = main(sys.argv[1:]); assert status == {status}, status; "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_what_nobody_asks_for_is_not_loaded(place: Place, tmp_path: Path) -> None:
    """Without a policy, or with one that accepts anything, no signature and nothing that checks one."""
    heavy = {"cryptography", "rootdisk.trust.judgement", "rootdisk.trust.keys", "rootdisk.trust.bundle"}
    for options in ((), ("--policy", str(write_policy(tmp_path / "any.json", {"type": "insecureAcceptAnything"})))):
        assert not heavy & loaded("pull", "--plain-http", *options, place.name)
    assert not any("referrers" in path or path.endswith(".sig") for _, path, _ in place.proxy.seen)
    # A boot of it, to where QEMU refuses the kernel, which is none.
    started = loaded("boot", "--plain-http", "--network", "none", place.name, status=125)
    assert "runner.machine.qemu" in started
    assert not {name for name in started if name.startswith(("cryptography", "rootdisk.trust."))}
    place.sign()
    assert heavy <= loaded("pull", "--plain-http", "--policy", str(place.policy), place.name)
    # What it said is kept, so the next time nothing has to be checked.
    assert "cryptography" not in loaded("pull", "--plain-http", "--policy", str(place.policy), place.name)


def test_inspect_says_who_signed(place: Place, tmp_path: Path, capsys: Said) -> None:
    place.sign(formats="both")
    other = make_keys(tmp_path / "other")
    place.sign(other)
    capsys.readouterr()
    assert place.run("--json", place.name, command="inspect") == 0
    value = json.loads(capsys.readouterr().out)[0]
    assert value["policy"] == "accepted"
    ours = [item for item in value["signatures"] if item["verified"]]
    assert [item["format"] for item in ours] == ["bundle", "simple"]
    assert {item["key"] for item in ours} == {place.keys.signer.public.fingerprint}
    assert {item["identity"] for item in ours} == {place.name}
    assert len(value["signatures"]) == 3
    write_policy(place.policy, signed_by(make_keys(tmp_path / "third")))
    assert place.run("--json", place.name, command="inspect") == 0
    assert json.loads(capsys.readouterr().out)[0]["policy"].startswith("refused: ")
    disk = {
        str(blob.descriptor.digest) for blob in place.made.artifact.blobs if blob.descriptor.media_type == DISK_TYPE
    }
    assert not any(path.rpartition("/")[2] in disk for _, path, _ in place.proxy.seen)
