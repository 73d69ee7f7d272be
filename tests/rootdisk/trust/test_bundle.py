"""A bundle says one thing in one way: whatever could be read in two is refused, in one line."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest
from rootdisk.trust.bundle import IN_TOTO_TYPE, SIGN_PREDICATE, Bundle, Statement, pre_authentication

DIGEST = Digest.of(b"x")
STATEMENT = Statement(DIGEST, "registry.example/web:1", SIGN_PREDICATE, {})
PAYLOAD = STATEMENT.to_json()
GOOD: dict[str, Any] = json.loads(Bundle(IN_TOTO_TYPE, PAYLOAD, b"signature", "hint").to_json())
TEXT = json.dumps(GOOD)
ENVELOPE = GOOD["dsseEnvelope"]


def with_envelope(**fields: Any) -> str:
    return json.dumps({**GOOD, "dsseEnvelope": {**ENVELOPE, **fields}})


def with_subject(digest: dict[str, str]) -> bytes:
    return json.dumps({**json.loads(PAYLOAD), "subject": [{"digest": digest}]}).encode()


def read(text: str) -> tuple[Bundle, Statement]:
    bundle = Bundle.parse(text.encode())
    return bundle, Statement.parse(bundle.payload_type, bundle.payload)


def test_a_plain_one() -> None:
    bundle, statement = read(TEXT)
    assert statement == STATEMENT
    assert bundle.signed == b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(PAYLOAD), PAYLOAD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        f"{TEXT} x",
        TEXT + TEXT,
        f"\ufeff{TEXT}",
        TEXT.replace('{"dsse', '{"dsseEnvelope": {}, "dsse', 1),
        TEXT.replace('"payload":', '"payload": "e30=", "payload":', 1),
        json.dumps({**GOOD, "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.2"}),
        json.dumps({**GOOD, "messageSignature": {}}),
        json.dumps({**GOOD, "more": 1}),
        json.dumps({**GOOD, "verificationMaterial": {"certificate": {"rawBytes": ""}}}),
        json.dumps({**GOOD, "verificationMaterial": {}}),
        with_envelope(signatures=[]),
        with_envelope(signatures=ENVELOPE["signatures"] * 2),
        with_envelope(signatures=[{"sig": "c2ln", "cert": "x"}]),
        with_envelope(signatures={"sig": "c2ln"}),
        with_envelope(signatures=[{"sig": ["c2ln"]}]),
        with_envelope(payload=""),
        with_envelope(payload="not base64"),
        with_envelope(payload=base64.b64encode(PAYLOAD).decode() + "\n"),
        with_envelope(payload=base64.b64encode(PAYLOAD).decode() + "e30="),
        with_envelope(payload=base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode()),
        with_envelope(payload=None),
        with_envelope(payloadType=5),
    ],
)
def test_what_could_be_read_in_two_ways(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("text/plain", PAYLOAD),
        (f"{IN_TOTO_TYPE} ", PAYLOAD),
        (IN_TOTO_TYPE, PAYLOAD + b" {}"),
        (IN_TOTO_TYPE, PAYLOAD.replace(b'{"_type"', b'{"subject": [], "_type"')),
        (IN_TOTO_TYPE, with_subject({})),
        (IN_TOTO_TYPE, with_subject({"sha256": DIGEST.hex, "sha512": "0" * 128})),
        (IN_TOTO_TYPE, with_subject({"sha256": DIGEST.hex.upper()})),
        (IN_TOTO_TYPE, with_subject({"sha1": "0" * 40})),
        (IN_TOTO_TYPE, json.dumps({**json.loads(PAYLOAD), "subject": []}).encode()),
        (IN_TOTO_TYPE, json.dumps({**json.loads(PAYLOAD), "_type": "https://in-toto.io/Statement/v2"}).encode()),
        (IN_TOTO_TYPE, json.dumps({**json.loads(PAYLOAD), "predicate": []}).encode()),
    ],
)
def test_statements_that_say_more_or_less(kind: str, payload: bytes) -> None:
    with pytest.raises(BadInput):
        Statement.parse(kind, payload)


def test_a_digest_of_another_algorithm_is_another_digest() -> None:
    other = Statement.parse(IN_TOTO_TYPE, with_subject({"sha512": "0" * 128}))
    assert other.digest != DIGEST
    assert str(other.digest).startswith("sha512:")


def test_type_and_payload_cannot_be_shifted() -> None:
    """The signed bytes have both lengths."""
    assert pre_authentication("a", b"b c") != pre_authentication("a b", b"c")
