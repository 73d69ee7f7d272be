"""Sigstore bundles v0.3 with a public key: a DSSE envelope around an in-toto statement.

Follows protobuf-specs' sigstore_bundle.proto (as JSON), DSSE's protocol.md and in-toto's Statement v1. Certificates and
transparency logs are not read: which key is believed is the policy's to say.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import Digest, canonical_json
from rootdisk.oci.fields import NOT_KNOWN, Fields, parse_value

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_BUNDLE_TYPES = (BUNDLE_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3")
IN_TOTO_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_STATEMENT_TYPES = (STATEMENT_TYPE, "https://in-toto.io/Statement/v0.1")
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"  # "this is signed", as cosign 3 says it

BUNDLE_MAX_BYTES = 1 << 20
_TEXT_MAX = BUNDLE_MAX_BYTES
_BUNDLE = {"mediaType", "verificationMaterial", "dsseEnvelope", "messageSignature"}
_MATERIAL = {"publicKey", "certificate", "x509CertificateChain", "tlogEntries", "timestampVerificationData"}


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature is over; protocol.md, "PAE"."""
    return b"DSSEv1 %d %b %d %b" % (len(payload_type.encode()), payload_type.encode(), len(payload), payload)


class Bundle(NamedTuple):
    """A bundle: the signed payload, and the one signature over it."""

    payload_type: str
    payload: bytes
    signature: bytes
    hint: str = ""  # which key, as the bundle says

    @classmethod
    def parse(cls, raw: bytes) -> Bundle:
        """Parse a bundle.

        Raises:
            BadInput: It is malformed.
            Unsupported: It is of another version, or cannot be checked with a public key.
        """
        value = Fields.of(parse_value(raw, "bundle", BUNDLE_MAX_BYTES), "bundle")
        value.only(_BUNDLE, NOT_KNOWN)
        media_type = value.text("mediaType", limit=255)
        if media_type not in _BUNDLE_TYPES:
            raise Unsupported(f"bundle: mediaType {media_type!r:.120}", "only version 0.3 is read")
        if "messageSignature" in value.value or "dsseEnvelope" not in value.value:
            raise Unsupported("bundle: messageSignature", "only a dsseEnvelope says what it signs")
        material = value.inner("verificationMaterial")
        material.only(_MATERIAL, NOT_KNOWN)
        if "publicKey" not in material.value:
            raise Unsupported("bundle: signed with a certificate", "only signatures of a key are checked")
        hint = material.inner("publicKey").text("hint", "")
        envelope = value.inner("dsseEnvelope")
        envelope.only({"payload", "payloadType", "signatures"}, NOT_KNOWN)
        signatures = list(envelope.objects("signatures", 1))
        if len(signatures) != 1:
            raise BadInput(f"bundle: {len(signatures)} signatures", "a bundle has exactly one")
        signatures[0].only({"sig", "keyid"}, NOT_KNOWN)
        return cls(
            envelope.text("payloadType", limit=255),
            _base64(envelope, "payload"),
            _base64(signatures[0], "sig"),
            hint,
        )

    def to_json(self) -> bytes:
        """Return the bundle as a document."""
        return canonical_json(
            {
                "mediaType": BUNDLE_TYPE,
                "verificationMaterial": {"publicKey": {"hint": self.hint}},
                "dsseEnvelope": {
                    "payload": base64.b64encode(self.payload).decode(),
                    "payloadType": self.payload_type,
                    "signatures": [{"sig": base64.b64encode(self.signature).decode()}],
                },
            }
        )

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over."""
        return pre_authentication(self.payload_type, self.payload)


class Statement(NamedTuple):
    """An in-toto statement about one thing."""

    digest: Digest
    name: str  # of the thing; "" if it has none
    predicate_type: str
    predicate: Mapping[str, Any]

    @classmethod
    def parse(cls, payload_type: str, payload: bytes) -> Statement:
        """Parse what an envelope holds.

        Raises:
            BadInput: It is not a statement, or about more or less than one digest.
        """
        if payload_type != IN_TOTO_TYPE:
            raise Unsupported(f"bundle: payloadType {payload_type!r:.120}", f"only {IN_TOTO_TYPE} is read")
        value = Fields.of(parse_value(payload, "statement", BUNDLE_MAX_BYTES), "statement")
        kind = value.text("_type", limit=255)
        if kind not in _STATEMENT_TYPES:
            raise Unsupported(f"statement: _type {kind!r:.120}", f"only {STATEMENT_TYPE} is read")
        subjects = list(value.objects("subject", 1000))
        if len(subjects) != 1:
            raise BadInput(f"statement: {len(subjects)} subjects", "a signature is about one digest")
        digests = subjects[0].strings("digest", 100, limit=255)
        if len(digests) != 1:
            raise BadInput(f"statement: {len(digests)} digests of its subject", "a signature is about one digest")
        ((algorithm, hex_),) = digests.items()
        return cls(
            Digest.parse(f"{algorithm}:{hex_}"),
            subjects[0].text("name", "", limit=1024),
            value.text("predicateType", limit=1024),
            value.inner("predicate").value if value.value.get("predicate") is not None else {},
        )

    def to_json(self) -> bytes:
        """Return the statement as a document."""
        subject: dict[str, Any] = {"digest": {self.digest.algorithm: self.digest.hex}}
        if self.name:
            subject["name"] = self.name
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [subject],
                "predicateType": self.predicate_type,
                "predicate": dict(self.predicate),
            }
        )


def _base64(value: Fields, key: str) -> bytes:
    text = value.text(key, limit=_TEXT_MAX)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise value.wrong(key, "not base64") from None
