"""Simple signing, the older form: a JSON payload that names a digest and a reference, and a signature beside it.

Follows containers-signature(5), "JSON data format", which podman, skopeo and cosign 1 and 2 read and write. The payload is a
layer of the manifest that the tag `sha256-HEX.sig` names; the signature is an annotation of it.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest, canonical_json
from rootdisk.oci.fields import NOT_KNOWN, Fields, parse_value

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"  # the annotation
PAYLOAD_MAX_BYTES = 256 << 10
_KINDS = ("atomic container signature", "cosign container image signature")
_SIGNATURE_MAX = 16 << 10


class Payload(NamedTuple):
    """The digest and reference of a simple signature."""

    digest: Digest
    reference: str  # docker-reference

    @classmethod
    def parse(cls, raw: bytes) -> Payload:
        """Parse a payload.

        Raises:
            BadInput: It is malformed, or has a field in its critical part that is not known.
        """
        value = Fields.of(parse_value(raw, "signature payload", PAYLOAD_MAX_BYTES), "signature payload")
        _exactly(value, {"critical", "optional"})
        critical = value.inner("critical")
        _exactly(critical, {"type", "image", "identity"})
        kind = critical.text("type", limit=255)
        if kind not in _KINDS:
            raise critical.wrong("type", f"{kind!r:.80} is not known")
        image, identity = critical.inner("image"), critical.inner("identity")
        _exactly(image, {"docker-manifest-digest"})
        _exactly(identity, {"docker-reference"})
        return cls(Digest.parse(image.value["docker-manifest-digest"]), identity.text("docker-reference", limit=1024))

    def to_json(self, creator: str) -> bytes:
        """Return the payload as a document; `creator` is the program that signs."""
        critical = {
            "type": _KINDS[1],
            "image": {"docker-manifest-digest": str(self.digest)},
            "identity": {"docker-reference": self.reference},
        }
        return canonical_json({"critical": critical, "optional": {"creator": creator}})


def signature_of(text: str) -> bytes:
    """Decode the signature in a layer's annotation."""
    try:
        if not text or len(text) > _SIGNATURE_MAX:
            raise ValueError
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise BadInput("simple signature: not base64") from None


def _exactly(value: Fields, known: set[str]) -> None:
    value.only(known, NOT_KNOWN)
    for key in known - value.value.keys() - {"optional"}:
        raise value.wrong(key, "missing")
