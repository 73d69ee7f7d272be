"""Signatures, keys and lists of them that are nearly right, with the registry's log as witness as in test_policy.py."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from imagetool.targets.attach import push_attached
from imagetool.targets.open import open_target
from rootdisk.oci.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, Digest, canonical_json
from rootdisk.oci.reference import parse_reference
from rootdisk.trust.bundle import BUNDLE_TYPE, IN_TOTO_TYPE, SIGN_PREDICATE, Bundle, Statement, pre_authentication
from rootdisk.trust.simple import PAYLOAD_TYPE, SIGNATURE
from runner.store.store import Store
from tests.support.faults import ALWAYS, Fault
from tests.support.registry import needs_registry
from tests.support.signed_places import Place, listing
from tests.support.signing import make_keys, signed_by, write_policy

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]
Said = pytest.CaptureFixture[str]


def attach(place: Place, raw: bytes, layer_type: str = BUNDLE_TYPE, **annotations: str) -> Digest:
    """Attach `raw`, whatever it is, as a bundle."""
    target = open_target(parse_reference(place.direct), place.registry.options)
    try:
        subject = Descriptor(OCI_MANIFEST, place.digest, len(place.made.artifact.manifest))
        return push_attached(target, subject, Descriptor(layer_type, Digest.of(raw), len(raw)), raw, annotations)
    finally:
        target.close()


def list_only(place: Place, *made: Digest) -> None:
    """Have the registry list these referrers and no others."""
    items = [Descriptor(OCI_MANIFEST, digest, 700, artifact_type=BUNDLE_TYPE) for digest in made]
    place.proxy.faults[:] = [Fault("status", path="/referrers/", status=200, body=listing(*items), times=ALWAYS)]


def signed(place: Place, value: Any, payload_type: str = IN_TOTO_TYPE) -> Bundle:
    """Return a bundle in which the right key says `value`."""
    payload = canonical_json(value)
    return Bundle(payload_type, payload, place.keys.signer.sign(pre_authentication(payload_type, payload)))


def statement(place: Place) -> Any:
    return json.loads(Statement(place.digest, place.name, SIGN_PREDICATE, {}).to_json())


def test_two_that_are_no_use_and_one_that_is(place: Place, capsys: Said) -> None:
    """The same bundle attached twice counts once; bad ones beside a good one do no harm."""
    other = place.claim(digest=Digest.of(b"other")).to_json()
    assert attach(place, other) != attach(place, other, twice="1")
    said = place.refused(capsys, "a signature of another digest")
    assert said.count("another digest") == 1
    place.sign()
    assert place.run() == 0


def test_one_bundle_with_two_signatures(place: Place, capsys: Said) -> None:
    """One of them is good. Which of them counts would be this reader's word, so neither does."""
    bad = {"sig": base64.b64encode(b"bad").decode()}
    for is_first in (True, False):
        value = json.loads(place.claim().to_json())
        good = value["dsseEnvelope"]["signatures"]
        value["dsseEnvelope"]["signatures"] = [*good, bad] if is_first else [bad, *good]
        list_only(place, attach(place, json.dumps(value).encode()))
        place.refused(capsys, "a signature that is not valid", "signatures")


def recoded(change: Callable[[str], str], field: str) -> Callable[[Place], bytes]:
    """Return what makes a good bundle with the text of `field` changed."""

    def make(place: Place) -> bytes:
        value = json.loads(place.claim().to_json())
        envelope = value["dsseEnvelope"]
        where = envelope if field == "payload" else envelope["signatures"][0]
        where[field] = change(where[field])
        return json.dumps(value).encode()

    return make


def folded(text: str) -> str:
    return "\n".join(text[at : at + 64] for at in range(0, len(text), 64))


def url_safe(text: str) -> str:
    """Return the alphabet of URLs, of bytes in which it differs."""
    return base64.urlsafe_b64encode(b"\xfb\xff" + base64.b64decode(text)).decode()


def with_digests(digests: dict[str, str]) -> Callable[[Place], bytes]:
    def make(place: Place) -> bytes:
        value = statement(place)
        value["subject"][0]["digest"] = {name: text.format(place.digest.hex) for name, text in digests.items()}
        return signed(place, value).to_json()

    return make


def upper(place: Place) -> bytes:
    value = statement(place)
    value["subject"][0]["digest"]["sha256"] = place.digest.hex.upper()
    return signed(place, value).to_json()


def other_type(payload_type: str) -> Callable[[Place], bytes]:
    return lambda place: signed(place, statement(place), payload_type).to_json()


ODD: dict[str, tuple[Callable[[Place], bytes], str]] = {
    "payload with newlines": (recoded(folded, "payload"), "payload: not base64"),
    "payload with a newline": (recoded(lambda text: text + "\n", "payload"), "payload: not base64"),
    "payload without padding": (recoded(lambda text: text[:-1], "payload"), "payload: not base64"),
    "payload with more padding": (recoded(lambda text: text.rstrip("=") + "====", "payload"), "payload: not base64"),
    "payload for URLs": (recoded(url_safe, "payload"), "payload: not base64"),
    "signature with a newline": (recoded(lambda text: text + "\n", "sig"), "sig: not base64"),
    "signature with blanks": (recoded(lambda text: f" {text} ", "sig"), "sig: not base64"),
    "signature for URLs": (recoded(url_safe, "sig"), "sig: not base64"),
    "signature that is empty": (recoded(lambda _: "", "sig"), "another key"),
    "signature that is longer": (
        recoded(lambda text: base64.b64encode(base64.b64decode(text) + b"\0").decode(), "sig"),
        "another key",
    ),
    "payloadType of another case": (other_type("application/vnd.in-toto+JSON"), "payloadType"),
    "payloadType with a parameter": (other_type(f"{IN_TOTO_TYPE}; charset=utf-8"), "payloadType"),
    "payloadType of plain text": (other_type("text/plain"), "payloadType"),
    "payloadType that is empty": (other_type(""), "payloadType"),
    "digest in upper case": (upper, "not a sha256 or sha512 digest"),
    "digest by sha512 alone": (with_digests({"sha512": "0" * 128}), "a signature of another digest"),
    "digest by sha256 and sha1": (with_digests({"sha256": "{}", "sha1": "0" * 40}), "2 digests"),
    "digest by an algorithm in upper case": (with_digests({"SHA256": "{}"}), "not a sha256 or sha512 digest"),
    "digest with its algorithm": (with_digests({"sha256": "sha256:{}"}), "not a sha256 or sha512 digest"),
}


def test_a_bundle_that_is_nearly_right(place: Place, capsys: Said) -> None:
    for what, (make, words) in ODD.items():
        list_only(place, attach(place, make(place)))
        assert words in place.refused(capsys), what
    list_only(place, attach(place, place.claim().to_json()))
    assert place.run() == 0


def test_a_bundle_of_a_type_in_another_case(place: Place, capsys: Said) -> None:
    """As the layer's, and as the bundle's own."""
    for media_type in (BUNDLE_TYPE.upper(), BUNDLE_TYPE.replace("bundle", "Bundle"), "text/plain"):
        list_only(place, attach(place, place.claim().to_json(), media_type))
        place.refused(capsys, "holds no bundle")
        value = json.loads(place.claim().to_json()) | {"mediaType": media_type}
        list_only(place, attach(place, json.dumps(value).encode()))
        place.refused(capsys, "bundle: mediaType")


def test_a_signature_of_a_key_of_another_kind(place: Place, capsys: Said) -> None:
    """The policy's key is Ed25519, and the signature ECDSA's; and the other way round."""
    folder = place.policy.parent
    for kinds in (("ecdsa", "ed25519"), ("ed25519", "ecdsa")):
        ours, theirs = (make_keys(folder / "-".join(kinds), kind, kind) for kind in kinds)
        place.sign(theirs, formats="both")
        write_policy(place.policy, signed_by(ours))
        place.refused(capsys, "a signature of another key")
    write_policy(place.policy, signed_by(ours), signed_by(theirs))  # both have to have signed
    place.refused(capsys, "a signature of another key")
    place.sign(ours)
    assert place.run() == 0


def private_pem() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def test_a_file_that_is_no_single_public_key(place: Place, capsys: Said) -> None:
    place.sign()
    good = place.keys.public.read_bytes()
    second = make_keys(place.policy.parent / "second").public.read_bytes()
    begin, end = b"-----BEGIN PUBLIC KEY-----\n", b"-----END PUBLIC KEY-----\n"
    off_curve = base64.b64encode(bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004") + b"\1" * 64)
    for text, words in (
        (good + second, "no public key in PEM"),
        (second + good, "no public key in PEM"),
        (b"a comment\n" + good, "no public key in PEM"),
        (good + b"a comment\n", "no public key in PEM"),
        (good.replace(b"PUBLIC KEY", b"CERTIFICATE"), "no public key in PEM"),
        (good.replace(b"PUBLIC KEY", b"RSA PUBLIC KEY"), "no public key in PEM"),
        (place.keys.private.read_bytes(), "a private key"),
        (private_pem(), "a private key"),
        (good + place.keys.private.read_bytes(), "a private key"),
        (place.keys.signer.public.der, "no public key in PEM"),
        (begin + b"AAAA\n" + end, "a key of a kind that is not read"),
        (begin + off_curve + b"\n" + end, "a signature of another key"),
        (b"", "no public key in PEM"),
        (b"\0" * 100_000, "more than"),
    ):
        place.keys.public.write_bytes(text)
        said = place.refused(capsys, words)
        assert b"PRIVATE" not in said.encode()
    place.keys.public.write_bytes(good.replace(b"\n", b"\r\n"))
    assert place.run() == 0


def simple(place: Place, **changes: Any) -> Any:
    """Return what a simple signature says; `reference` and `digest` may be another's."""
    return {
        "critical": {
            "type": "cosign container image signature",
            "image": {"docker-manifest-digest": changes.get("digest", str(place.digest))},
            "identity": {"docker-reference": changes.get("reference", place.name)},
        },
        "optional": None,
    }


def push_simple(place: Place, *documents: bytes, sign_it: bool = True) -> None:
    """Put documents, signed with the right key, where simple signatures are."""
    target = open_target(parse_reference(place.direct), place.registry.options)
    layers = []
    for raw in documents:
        layer = Descriptor(PAYLOAD_TYPE, Digest.of(raw), len(raw))
        target.push_blob(layer, raw)
        signature = base64.b64encode(place.keys.signer.sign(raw if sign_it else b"")).decode()
        layers.append(layer.to_json() | {"annotations": {SIGNATURE: signature}})
    config = Descriptor("application/vnd.oci.image.config.v1+json", Digest.of(b"{}"), 2)
    target.push_blob(config, b"{}")
    value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.to_json(), "layers": layers}
    target.push_manifest(canonical_json(value), OCI_MANIFEST, (f"sha256-{place.digest.hex}.sig",))
    target.close()


REFERENCES = (
    ("{host}/trust/another:1", "and not as"),
    ("{host}/{repository}", "and not as"),
    ("{host}/{repository}:2", "and not as"),
    ("{host}/{repository}:1@{digest}", "and not as"),
    ("{host}/{repository}@{digest}", "and not as"),
    ("user@{host}/{repository}:1", "which is not a reference"),
    ("user:password@{host}/{repository}:1", "which is not a reference"),
    ("docker://{host}/{repository}:1", "which is not a reference"),
    ("http://{host}/{repository}:1", "which is not a reference"),
    ("{host}/{upper}:1", "which is not a reference"),
    ("{host}/{repository}:1 ", "which is not a reference"),
    ("{host}/{repository}:1\n", "which is not a reference"),
    ("{host}/{repository}/../x:1", "which is not a reference"),
    ("oci:/{repository}:1", "which is not a reference"),
    ("", "signed without a repository"),
)


def test_a_simple_signature_of_another_reference(place: Place, capsys: Said) -> None:
    names = {"host": place.proxy.name, "repository": place.repository, "upper": place.repository.upper()}
    for reference, words in REFERENCES:
        named = reference.format(**names, digest=place.digest)
        push_simple(place, canonical_json(simple(place, reference=named)))
        assert words in place.refused(capsys), named


def test_odd_simple_signatures(place: Place, capsys: Said) -> None:
    good = simple(place)
    for value, words in (
        (simple(place, digest=str(Digest.of(b"other"))), "a signature of another digest"),
        (simple(place, digest=str(place.digest).upper()), "digest"),
        (simple(place, digest=f"sha512:{'0' * 128}"), "a signature of another digest"),
        (good | {"more": 1}, "more"),
        ({**good, "critical": good["critical"] | {"more": 1}}, "more"),
        ({**good, "critical": good["critical"] | {"image": {}}}, "docker-manifest-digest"),
        ({**good, "critical": good["critical"] | {"identity": {}}}, "docker-reference"),
        ({**good, "critical": good["critical"] | {"type": "Cosign container image signature"}}, "type"),
        ({"critical": None}, "critical"),
        ([], "not a JSON object"),
    ):
        push_simple(place, canonical_json(value))
        place.refused(capsys, "a signature", words)
    push_simple(place, json.dumps(good).encode()[:-1] + b', "optional": {}}')
    place.refused(capsys, "duplicate key 'optional'")
    push_simple(place, canonical_json(good), sign_it=False)
    place.refused(capsys, "a signature of another key")


def test_optional_fields_of_a_simple_signature(place: Place, store: Store) -> None:
    """They are nobody's promise: whatever they are, the rest counts."""
    for optional in ("left out", None, {}, {"creator": "x", "timestamp": 5, "more": [1]}):
        value = simple(place) | {"optional": optional}
        if optional == "left out":
            del value["optional"]
        push_simple(place, b"?", canonical_json(value))
        assert place.run() == 0, optional
        (kept,) = (store.root / "trust").iterdir()
        kept.unlink()


def odd_lists(made: Digest) -> dict[str, tuple[Any, str]]:
    """Return lists of referrers with a good bundle in them, and what is said of each; "" if it is taken."""
    good = Descriptor(OCI_MANIFEST, made, 700, artifact_type=BUNDLE_TYPE).to_json()
    nested = json.loads(listing(Descriptor(OCI_MANIFEST, made, 700, artifact_type=BUNDLE_TYPE)))
    many = {f"key-{number}": "x" for number in range(10_000)}
    without = {key: value for key, value in good.items() if key != "mediaType"}
    return {
        "good": ([good], ""),
        "twice": ([good, good], ""),
        "missing mediaType": ([without], "mediaType"),
        "another artifactType": ([good | {"artifactType": "application/x"}], "it has no signature"),
        "artifactType in upper case": ([good | {"artifactType": BUNDLE_TYPE.upper()}], "it has no signature"),
        "the type of an index": ([good | {"mediaType": OCI_INDEX}], ""),
        "a nested index": ([good | {"digest": str(Digest.of(canonical_json(nested)))}], "is listed and not there"),
        "many annotations": ([good | {"annotations": many}], ""),
        "annotations that are no texts": ([good | {"annotations": {"a": 1}}], "annotations"),
        "no list": ({}, "manifests"),
    }


@pytest.mark.parametrize("api", [True, False])
def test_odd_lists_of_referrers(place: Place, store: Store, api: bool, capsys: Said) -> None:
    for what, (manifests, words) in odd_lists(place.push(place.claim())).items():
        body = canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
        place.proxy.faults.clear()
        if not api:
            place.proxy.add(Fault("status", path="/referrers/", status=404, times=ALWAYS))
        path = "/referrers/" if api else f"/manifests/sha256-{place.digest.hex}"
        place.proxy.add(Fault("status", path=path, status=200, body=body, times=ALWAYS))
        place.proxy.seen.clear()
        if words:
            assert words in place.refused(capsys), what
        else:
            assert place.run() == 0, (what, capsys.readouterr().err)
            (kept,) = (store.root / "trust").iterdir()
            kept.unlink()
