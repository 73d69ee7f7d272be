"""Other people's tools and our signatures, both ways: securesystemslib, skopeo, cosign, and npm's sigstore."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

from imagetool.signing.keys import FileKey
from imagetool.signing.sign import push_bundle, sign
from imagetool.targets.open import open_target
from rootdisk.artifact.signatures import signatures_of
from rootdisk.errors import BadInput
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor
from rootdisk.oci.reference import parse_reference
from rootdisk.places import open_repository
from rootdisk.trust.bundle import SIGN_PREDICATE, Bundle, Statement
from rootdisk.trust.keys import PublicKey
from rootdisk.trust.signatures import Signature
from runner.cli import main
from runner.store.store import Store
from tests.support.artifacts import noise, publish, sample
from tests.support.newer_debian import NewerDebian
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.signing import Keys, cosign_key, make_keys, signed_by, write_policy

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]
MADE = sample(noise(3, 64 << 10, seed=21))
NPM = ("@sigstore/bundle@3.1.0", "@sigstore/sign@3.1.0", "@sigstore/verify@2.1.1")  # the last that run on Node.js 18


@pytest.fixture(params=["ecdsa", "ed25519"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Keys:
    return make_keys(tmp_path / "keys", kind=request.param)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    return Store.open()


def published(registry: RunningRegistry, name: str) -> str:
    publish(MADE, f"{registry.name}/independent/{name}:1", registry.options)
    return f"{registry.name}/independent/{name}:1"


def bundle_of(name: str, registry: RunningRegistry, keys: Keys, public: PublicKey | None = None) -> bytes:
    """The bundle that `keys` made, of those that are there."""
    repository = open_repository(parse_reference(name), registry.options)
    try:
        for found in signatures_of(repository, MADE.artifact.descriptor.digest):
            if isinstance(found, Signature) and found.format == "bundle" and found.claim(public or keys.signer.public):
                return found.document
    finally:
        repository.close()
    raise AssertionError("there is none")


def test_securesystemslib_verifies_the_envelope(registry: RunningRegistry, keys: Keys) -> None:
    name = published(registry, "envelope")
    sign(parse_reference(name), keys.signer, registry.options)
    value = json.loads(bundle_of(name, registry, keys))["dsseEnvelope"]
    value["signatures"][0]["keyid"] = "ours"
    envelope = Envelope.from_dict(value)
    public = keys.public.read_text()
    scheme = ("ecdsa", "ecdsa-sha2-nistp256") if keys.signer.public.kind == "ecdsa-p256" else ("ed25519", "ed25519")
    key = SSlibKey("ours", *scheme, {"public": public if scheme[0] == "ecdsa" else keys.signer.public.der[-32:].hex()})
    envelope.verify([key], 1)
    envelope.payload = envelope.payload.replace(b'"name"', b'"nbme"')
    with pytest.raises(VerificationError):
        envelope.verify([key], 1)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> NewerDebian:
    return NewerDebian(tmp_path_factory.mktemp("newer"), "skopeo", "cosign")


def skopeo(
    newer: NewerDebian, folder: Path, registry: RunningRegistry, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run skopeo with attachments as the place of signatures."""
    (folder / "registries.d").mkdir(exist_ok=True)
    value = {"docker": {registry.name: {"use-sigstore-attachments": True}}}
    (folder / "registries.d/test.yaml").write_text(json.dumps(value))
    return newer.run("skopeo", "--registries.d", str(folder / "registries.d"), *words, HOME=str(folder))


def pulled(folder: Path, keys: Keys, name: str, **identity: str) -> int:
    """Whether the runner takes it under a policy with these keys."""
    policy = write_policy(folder / f"{keys.public.parent.name}.json", signed_by(keys, **identity))
    return main(["pull", "--plain-http", "--policy", str(policy), name])


@pytest.mark.nightly
def test_what_skopeo_signs_is_accepted(
    registry: RunningRegistry, store: Store, newer: NewerDebian, tmp_path: Path
) -> None:
    source = published(registry, "unsigned")
    keys = cosign_key(tmp_path / "cosign", b"a passphrase")
    (tmp_path / "passphrase").write_text("a passphrase\n")
    target = f"{registry.name}/independent/by-skopeo:1"
    done = skopeo(
        newer, tmp_path, registry, "--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
        "--preserve-digests", "--sign-by-sigstore-private-key", str(keys.private),
        "--sign-passphrase-file", str(tmp_path / "passphrase"), f"docker://{source}", f"docker://{target}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pulled(tmp_path, keys, target) == 0
    assert pulled(tmp_path, make_keys(tmp_path / "other"), target) == 125


@pytest.mark.nightly
@pytest.mark.parametrize("reference", ["tag", "digest"])
def test_skopeo_accepts_what_we_sign(
    registry: RunningRegistry, newer: NewerDebian, tmp_path: Path, reference: str
) -> None:
    """Under the same policy.json."""
    name = published(registry, f"for-skopeo-{reference}")
    keys = make_keys(tmp_path / "keys")
    sign(parse_reference(name), keys.signer, registry.options, formats="both")
    sign(parse_reference(name), make_keys(tmp_path / "more").signer, registry.options, formats="simple")
    asked = name if reference == "tag" else f"{name.rpartition(':')[0]}@{MADE.artifact.descriptor.digest}"
    copy = ["copy", "--src-tls-verify=false", "--remove-signatures", f"docker://{asked}", f"oci:{tmp_path}/layout:1"]
    policy = write_policy(tmp_path / "policy.json", signed_by(keys))
    done = skopeo(newer, tmp_path, registry, "--policy", str(policy), *copy)
    assert done.returncode == 0, done.stderr
    other = write_policy(tmp_path / "other.json", signed_by(make_keys(tmp_path / "other")))
    done = skopeo(newer, tmp_path, registry, "--policy", str(other), *copy)
    assert done.returncode != 0
    assert "invalid signature" in done.stderr


@pytest.mark.nightly
def test_cosign_both_ways(registry: RunningRegistry, store: Store, newer: NewerDebian, tmp_path: Path) -> None:
    """Its key signs here; it accepts our two formats and refuses another key; we accept what it signs."""
    env = {"COSIGN_PASSWORD": "a passphrase", "HOME": str(tmp_path)}

    def cosign(*words: str) -> subprocess.CompletedProcess[str]:
        return newer.run("cosign", *words, cwd=tmp_path, **env)

    assert cosign("generate-key-pair").returncode == 0
    keys = Keys(tmp_path / "cosign.key", tmp_path / "cosign.pub")
    key = FileKey(keys.private.read_bytes(), b"a passphrase", "key")
    with pytest.raises(BadInput, match="passphrase is wrong"):
        FileKey(keys.private.read_bytes(), b"another", "key")
    name = published(registry, "for-cosign")
    at = f"{name.rpartition(':')[0]}@{MADE.artifact.descriptor.digest}"
    sign(parse_reference(name), key, registry.options, formats="both")
    other = make_keys(tmp_path / "other")
    ignoring = ("--insecure-ignore-tlog=true", "--allow-insecure-registry", "--allow-http-registry")
    verify = ("verify", *ignoring, "--key")
    done = cosign(*verify, "cosign.pub", at)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["critical"]["identity"]["docker-reference"] == name
    assert cosign(*verify, str(other.public), at).returncode != 0
    (tmp_path / "bundle.json").write_bytes(bundle_of(name, registry, Keys(keys.private, keys.public), key.public))
    (tmp_path / "manifest").write_bytes(MADE.artifact.manifest)
    root = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}
    (tmp_path / "root.json").write_text(json.dumps(root))  # else it asks for the public one
    blob = (
        "verify-blob-attestation",
        "--trusted-root",
        "root.json",
        "--bundle",
        "bundle.json",
        "--new-bundle-format",
        ignoring[0],
        "--type",
    )
    done = cosign(*blob, SIGN_PREDICATE, "--key", "cosign.pub", "manifest")
    assert done.returncode == 0, done.stderr
    assert cosign(*blob, SIGN_PREDICATE, "--key", str(other.public), "manifest").returncode != 0
    theirs = published(registry, "by-cosign")
    signed = ("sign", "--key", "cosign.key", "--tlog-upload=false", "--yes", *ignoring[1:])
    done = cosign(*signed, f"{theirs.rpartition(':')[0]}@{MADE.artifact.descriptor.digest}")
    assert done.returncode == 0, done.stderr
    assert pulled(tmp_path, keys, theirs) == 125  # it names the repository alone
    assert pulled(tmp_path, keys, theirs, type="matchRepository") == 0


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """npm's packages, by npm."""
    assert shutil.which("npm"), "npm is not installed: ./quickstart nightly installs it"
    folder = tmp_path_factory.mktemp("npm")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
    subprocess.run(["npm", "install", *options, *NPM], check=True, capture_output=True, timeout=300)
    return folder


def node(modules: Path, program: str, given: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (modules / "program.js").write_text(program)
    argv = ["node", "program.js"]
    return subprocess.run(argv, cwd=modules, input=json.dumps(given), capture_output=True, text=True, timeout=60)


VERIFY = """
const {bundleFromJSON} = require('@sigstore/bundle');
const {Verifier, toSignedEntity, toTrustMaterial} = require('@sigstore/verify');
const {createPublicKey} = require('crypto');
const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const root = {mediaType: '', certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: []};
const trusted = toTrustMaterial(root, (hint) => ({publicKey: createPublicKey(given.key), validFor: () => true}));
const thresholds = {ctlogThreshold: 0, tlogThreshold: 0, tsaThreshold: 0, timestampThreshold: 0};
const bundle = bundleFromJSON(JSON.parse(given.bundle));
new Verifier(trusted, thresholds).verify(toSignedEntity(bundle));
process.stdout.write(bundle.content.dsseEnvelope.payload.toString());
"""
SIGN = """
const {DSSEBundleBuilder} = require('@sigstore/sign');
const {bundleToJSON} = require('@sigstore/bundle');
const {createPrivateKey, createPublicKey, sign} = require('crypto');
const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const key = createPrivateKey(given.key);
const kind = key.asymmetricKeyType === 'ed25519' ? null : 'sha256';
const signer = {sign: async (data) => ({
  signature: sign(kind, data, key),
  key: {$case: 'publicKey', publicKey: createPublicKey(key).export({type: 'spki', format: 'pem'}), hint: 'by npm'},
})};
new DSSEBundleBuilder({signer, witnesses: []})
  .create({data: Buffer.from(given.payload, 'base64'), type: 'application/vnd.in-toto+json'})
  .then((bundle) => process.stdout.write(JSON.stringify(bundleToJSON(bundle))));
"""


@pytest.mark.nightly
def test_npm_verifies_our_bundle(registry: RunningRegistry, keys: Keys, modules: Path) -> None:
    name = published(registry, "for-npm")
    sign(parse_reference(name), keys.signer, registry.options)
    raw = bundle_of(name, registry, keys)
    done = node(modules, VERIFY, {"key": keys.public.read_text(), "bundle": raw.decode()})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["subject"][0]["digest"] == {"sha256": MADE.artifact.descriptor.digest.hex}
    bundle = Bundle.parse(raw)
    for changed in (
        bundle._replace(payload=bundle.payload.replace(b"1", b"2", 1)),
        bundle._replace(payload_type="application/vnd.in-toto+jsom"),
        bundle._replace(signature=keys.signer.sign(b"something else")),
    ):
        done = node(modules, VERIFY, {"key": keys.public.read_text(), "bundle": changed.to_json().decode()})
        assert done.returncode != 0
        assert "signature verification failed" in done.stderr


@pytest.mark.nightly
def test_what_npm_signs_is_accepted(
    registry: RunningRegistry, keys: Keys, modules: Path, store: Store, tmp_path: Path
) -> None:
    name = published(registry, f"by-npm-{keys.signer.public.kind}")
    subject = Descriptor(OCI_MANIFEST, MADE.artifact.descriptor.digest, len(MADE.artifact.manifest))
    payload = base64.b64encode(Statement(subject.digest, name, SIGN_PREDICATE, {}).to_json()).decode()
    done = node(modules, SIGN, {"key": keys.private.read_text(), "payload": payload})
    assert done.returncode == 0, done.stderr
    target = open_target(parse_reference(name), registry.options)
    push_bundle(target, subject, Bundle.parse(done.stdout.encode()), SIGN_PREDICATE)
    target.close()
    policy = write_policy(tmp_path / "policy.json", signed_by(keys))
    assert main(["pull", "--plain-http", "--policy", str(policy), name]) == 0
    other = write_policy(tmp_path / "other.json", signed_by(make_keys(tmp_path / "other")))
    assert main(["pull", "--plain-http", "--policy", str(other), name]) == 125
