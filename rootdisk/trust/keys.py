"""Public keys of signatures: ECDSA P-256 and Ed25519. `cryptography` is loaded when a signature is checked, not before."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Literal, NamedTuple

from rootdisk.errors import BadInput, RootdiskError, Unsupported

Kind = Literal["ecdsa-p256", "ed25519"]

KEY_MAX_BYTES = 64 << 10
# SubjectPublicKeyInfo in DER up to the key itself: RFC 5480 with an uncompressed point, and RFC 8410.
_PREFIXES: tuple[tuple[Kind, bytes, int], ...] = (
    ("ecdsa-p256", bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"), 64),
    ("ed25519", bytes.fromhex("302a300506032b6570032100"), 32),
)
_PEM = re.compile(rb"\s*-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]*)-----END PUBLIC KEY-----\s*\Z")


class PublicKey(NamedTuple):
    """A key that signatures are checked with."""

    kind: Kind
    der: bytes  # SubjectPublicKeyInfo

    @classmethod
    def parse(cls, pem: bytes, what: str) -> PublicKey:
        """Parse a PEM file; errors name `what`.

        Raises:
            BadInput: It is not a public key.
            Unsupported: The key is of another kind.
        """
        if len(pem) > KEY_MAX_BYTES:
            raise BadInput(f"{what}: {len(pem)} bytes are more than a public key has")
        if b"PRIVATE KEY" in pem:
            raise BadInput(f"{what}: a private key", "a policy names public keys: openssl pkey -pubout")
        match = _PEM.match(pem)
        try:
            der = base64.b64decode(b"".join(match[1].split()), validate=True) if match else b""
        except binascii.Error:
            der = b""
        if not der:
            raise BadInput(f"{what}: no public key in PEM", "it begins with -----BEGIN PUBLIC KEY-----")
        return cls.of_der(der, what)

    @classmethod
    def of_der(cls, der: bytes, what: str) -> PublicKey:
        """Parse a SubjectPublicKeyInfo; Unsupported names `what`."""
        for kind, prefix, length in _PREFIXES:
            if der.startswith(prefix) and len(der) == len(prefix) + length:
                return cls(kind, der)
        raise Unsupported(f"{what}: a key of a kind that is not read", "ECDSA P-256 or Ed25519")

    @property
    def fingerprint(self) -> str:
        """Name of the key: the sha256 of its DER form."""
        return f"sha256:{hashlib.sha256(self.der).hexdigest()}"

    @property
    def hint(self) -> str:
        """Name of the key in a bundle, as cosign writes it: the base64 of the DER form's sha256."""
        return base64.b64encode(hashlib.sha256(self.der).digest()).decode()

    @property
    def pem(self) -> bytes:
        """The key as a PEM file."""
        text = base64.b64encode(self.der)
        lines = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        return b"-----BEGIN PUBLIC KEY-----\n" + lines + b"\n-----END PUBLIC KEY-----\n"

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Tell whether `signature` is this key's over `data`. ECDSA signs the sha256, in DER; Ed25519 the data itself.

        Raises:
            RootdiskError: the package that checks signatures is not installed.
        """
        key = self.der[-64:] if self.kind == "ecdsa-p256" else self.der[-32:]
        try:
            from cryptography.exceptions import InvalidSignature

            if self.kind == "ed25519":
                from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

                try:
                    Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
                except InvalidSignature:
                    return False
                return True
            from cryptography.hazmat.primitives.asymmetric import ec
            from cryptography.hazmat.primitives.hashes import SHA256
        except ModuleNotFoundError as err:
            raise missing_package() from err
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + key)
            public.verify(signature, data, ec.ECDSA(SHA256()))
        except (InvalidSignature, ValueError):  # ValueError: no point of the curve
            return False
        return True


def missing_package() -> RootdiskError:
    """Return the error to raise if `cryptography` is not installed."""
    return RootdiskError(
        "signatures cannot be checked: the package cryptography is not installed", "pip install 'rootdisk[verify]'"
    )
