"""Keys, policies and signatures for tests, made with `cryptography` and PyNaCl and not with our own code."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nacl.secret
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from imagetool.signing.keys import FileKey

PRIVATE = serialization.PrivateFormat.PKCS8
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER


@dataclass(frozen=True)
class Keys:
    """A key pair in files."""

    private: Path
    public: Path

    @property
    def signer(self) -> FileKey:
        return FileKey(self.private.read_bytes(), None, "key")


def make_keys(folder: Path, name: str = "key", kind: str = "ecdsa", passphrase: bytes | None = None) -> Keys:
    """Write a key pair: PEM, encrypted with `passphrase`."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ecdsa" else ed25519.Ed25519PrivateKey.generate()
    protection = (
        serialization.BestAvailableEncryption(passphrase) if passphrase is not None else serialization.NoEncryption()
    )
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(PEM, PRIVATE, protection))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return Keys(private, public)


def cosign_key(folder: Path, passphrase: bytes, kind: str = "ecdsa") -> Keys:
    """Write a key pair as `cosign generate-key-pair` does."""
    plain = make_keys(folder, "plain", kind)
    key = serialization.load_pem_private_key(plain.private.read_bytes(), None)
    der = key.private_bytes(DER, PRIVATE, serialization.NoEncryption())
    salt, nonce = os.urandom(32), os.urandom(24)
    secret = hashlib.scrypt(passphrase, salt=salt, n=32768, r=8, p=1, maxmem=128 << 20, dklen=32)
    box = nacl.secret.SecretBox(secret).encrypt(der, nonce).ciphertext
    text = json.dumps(
        {
            "kdf": {"name": "scrypt", "params": {"N": 32768, "r": 8, "p": 1}, "salt": _b64(salt)},
            "cipher": {"name": "nacl/secretbox", "nonce": _b64(nonce)},
            "ciphertext": _b64(box),
        }
    )
    lines = "\n".join(_b64(text.encode())[at : at + 64] for at in range(0, len(_b64(text.encode())), 64))
    private = folder / "cosign.key"
    private.write_text(
        f"-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----\n{lines}\n-----END ENCRYPTED COSIGN PRIVATE KEY-----\n"
    )
    return Keys(private, plain.public)


def signed_by(*keys: Keys, **identity: str) -> dict[str, Any]:
    """Requirement: signed by one of these; `type` and its fields are the signedIdentity."""
    value: dict[str, Any] = {"type": "sigstoreSigned", "keyPaths": [str(key.public) for key in keys]}
    if len(keys) == 1:
        value = {"type": "sigstoreSigned", "keyPath": str(keys[0].public)}
    return value | ({"signedIdentity": identity} if identity else {})


def write_policy(path: Path, *default: dict[str, Any], **transports: dict[str, list[dict[str, Any]]]) -> Path:
    """Write a policy.json."""
    path.write_text(json.dumps({"default": list(default), "transports": transports}))
    return path


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
