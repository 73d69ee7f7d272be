"""OCI documents: what is read, what is refused, and how a platform is chosen."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootdisk.errors import BadInput, RootdiskError, Unsupported
from rootdisk.oci.documents import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    Platform,
    canonical_json,
)
from rootdisk.oci.repository import describe_manifest

DIGEST = Digest.of(b"x")
DESCRIPTOR = {"mediaType": "t", "digest": str(DIGEST), "size": 1}


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:../../etc", "md5:" + "0" * 32, "sha256:" + "0" * 63 + "\n", 7]
)
def test_a_digest_is_never_a_path(text: object) -> None:
    with pytest.raises(BadInput):
        Digest.parse(text)


def test_round_trips() -> None:
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "a/b",
        "config": DESCRIPTOR,
        "layers": [{**DESCRIPTOR, "annotations": {"k": "v"}}],
        "annotations": {"a": "1"},
        "subject": DESCRIPTOR,
    }
    assert Manifest.parse(json.dumps(manifest).encode()).to_json() == manifest
    platform = {"os": "linux", "architecture": "arm", "variant": "v7"}
    index = {"schemaVersion": 2, "mediaType": "i", "manifests": [{**DESCRIPTOR, "platform": platform}]}
    assert Index.parse(json.dumps(index).encode()).to_json() == index


@pytest.mark.parametrize("change", [{"size": -1}, {"size": True}, {"size": "1"}, {"mediaType": ""}, {"digest": None}])
def test_descriptors_that_lie(change: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Descriptor.parse({**DESCRIPTOR, **change})


def test_platforms_have_one_name() -> None:
    assert Platform.parse("x86_64") == Platform.parse("linux/amd64") == Platform("linux", "amd64")
    assert Platform.parse("linux/arm64/v8") == Platform.parse("aarch64")
    assert str(Platform.parse("linux/arm")) == "linux/arm/v7"
    assert Platform.parse("linux") == Platform.host()
    for wrong in ("", "linux/", "a/b/c/d"):
        with pytest.raises(BadInput):
            Platform.parse(wrong)


def test_the_choice_is_exact() -> None:
    def item(os: str, architecture: str) -> dict[str, object]:
        return {**DESCRIPTOR, "platform": {"os": os, "architecture": architecture}}

    manifests = [item("linux", "arm64"), item("windows", "amd64"), item("unknown", "unknown")]
    index = Index.parse(canonical_json({"schemaVersion": 2, "manifests": manifests}))
    assert index.choose(Platform.parse("linux/arm64")).platform == Platform("linux", "arm64")
    with pytest.raises(
        BadInput, match=r"no linux/amd64 variant \(only linux/arm64, windows/amd64\): use --platform linux/arm64"
    ):
        index.choose(Platform.parse("amd64"))


def test_a_document_is_of_one_kind() -> None:
    """What one tool reads as an index and another as an image (CVE-2021-41190) is refused, whatever it says it is."""
    both = {"schemaVersion": 2, "manifests": [DESCRIPTOR], "config": DESCRIPTOR, "layers": []}
    for media_type in ("", OCI_MANIFEST, OCI_INDEX):
        raw = json.dumps({**both, **({"mediaType": media_type} if media_type else {})}).encode()
        with pytest.raises(BadInput, match="both an index and an image"):
            describe_manifest(raw, Digest.of(raw), "test", media_type)
    for kind, other in (("manifests", OCI_MANIFEST), ("layers", OCI_INDEX)):
        raw = json.dumps({"schemaVersion": 2, kind: [], "mediaType": other, "config": DESCRIPTOR}).encode()
        with pytest.raises(RootdiskError):
            (Manifest.parse if other == OCI_MANIFEST else Index.parse)(raw)
    # As an entry of an index, or of a layout, it has the type that is listed there.
    image = {"schemaVersion": 2, "config": DESCRIPTOR, "layers": [DESCRIPTOR]}
    index = {"schemaVersion": 2, "manifests": [DESCRIPTOR]}
    for parse, good, more in (
        (Manifest.parse, image, {"manifests": []}),
        (Manifest.parse, image, {"mediaType": OCI_INDEX}),
        (Index.parse, index, {"layers": []}),
        (Index.parse, index, {"config": DESCRIPTOR}),
        (Index.parse, index, {"mediaType": OCI_MANIFEST}),
    ):
        parse(json.dumps(good).encode())
        with pytest.raises(BadInput, match=r"both an index and an image|the other kind"):
            parse(json.dumps({**good, **more}).encode())


def test_old_and_broken_documents() -> None:
    with pytest.raises(Unsupported, match="schemaVersion 1"):
        Manifest.parse(b'{"schemaVersion": 1}')
    for raw in (b"", b"[]", b"{", b"[" * 100_000, b'{"schemaVersion": 2}', b"\xff", b"{" + b" " * (5 << 20)):
        with pytest.raises(BadInput):
            Manifest.parse(raw)
    for depth in (65, 100_000):
        with pytest.raises(BadInput, match="manifest: nested more than 64 deep"):
            Manifest.parse(b'{"a":' + b"[" * depth + b"]" * depth + b"}")


@given(st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(canonical_json))
def test_no_bytes_bring_a_parser_down(raw: bytes) -> None:
    for parse in (Manifest.parse, Index.parse):
        with pytest.raises(RootdiskError):
            parse(raw)
