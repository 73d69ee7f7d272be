"""Signatures of both formats, and what they say after a key has verified them."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal, NamedTuple

from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest
from rootdisk.trust.bundle import BUNDLE_MAX_BYTES, SIGN_PREDICATE, Bundle, Statement
from rootdisk.trust.keys import PublicKey
from rootdisk.trust.simple import PAYLOAD_MAX_BYTES, Payload

Format = Literal["bundle", "simple"]


class Claim(NamedTuple):
    """Digest and reference that a signature names; "" if it names no reference."""

    digest: Digest
    identity: str


class Signature(NamedTuple):
    """A signature that is not checked yet."""

    format: Format
    document: bytes  # the bundle, or the simple payload
    signature: bytes = b""  # of a simple payload

    def hint(self) -> str:
        """Return the name of the key that it gives; not checked."""
        return Bundle.parse(self.document).hint if self.format == "bundle" else ""

    def claim(self, key: PublicKey) -> Claim | None:
        """Return what `key` has signed; None if this is not a signature of `key`. The payload is parsed after that only.

        Raises:
            BadInput: it is malformed, or `key` has signed something that is not a signature of one digest.
        """
        if self.format == "simple":
            if not key.verify(self.signature, self.document):
                return None
            payload = Payload.parse(self.document)
            return Claim(payload.digest, payload.reference)
        bundle = Bundle.parse(self.document)
        if not key.verify(bundle.signature, bundle.signed):
            return None
        statement = Statement.parse(bundle.payload_type, bundle.payload)
        if statement.predicate_type != SIGN_PREDICATE:
            raise BadInput(f"it says {statement.predicate_type!r:.120}, which is not a signature")
        return Claim(statement.digest, statement.name)

    def to_json(self) -> dict[str, Any]:
        """Return it as the store keeps it."""
        value = {"format": self.format, "document": base64.b64encode(self.document).decode()}
        return value | ({"signature": base64.b64encode(self.signature).decode()} if self.signature else {})

    @classmethod
    def of_json(cls, value: Any) -> Signature:
        """Parse what the store keeps; ValueError if it is malformed."""
        try:
            form, document = value["format"], base64.b64decode(value["document"], validate=True)
            signature = base64.b64decode(value.get("signature", ""), validate=True)
        except (KeyError, TypeError, AttributeError, binascii.Error) as err:
            raise ValueError("not a signature") from err
        if form not in ("bundle", "simple") or len(document) > max(BUNDLE_MAX_BYTES, PAYLOAD_MAX_BYTES):
            raise ValueError("not a signature")
        return cls(form, document, signature)
