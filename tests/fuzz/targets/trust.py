"""Signatures, policies and encrypted keys."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import nacl.secret

from imagetool.signing import cosign
from rootdisk.oci.documents import Digest, Index
from rootdisk.oci.layout import REF_NAME
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.referrers import in_layout
from rootdisk.trust.bundle import IN_TOTO_TYPE, SIGN_PREDICATE, Bundle, Statement
from rootdisk.trust.keys import PublicKey
from rootdisk.trust.policy import Policy
from rootdisk.trust.simple import Payload
from tests.fuzz.target import Target
from tests.fuzz.targets.documents import INDEX, MANIFEST

DIGEST = Digest.of(b"x")
PEM = PublicKey("ed25519", bytes.fromhex("302a300506032b6570032100") + bytes(32)).pem
STATEMENT = Statement(DIGEST, "registry.example/web:1", SIGN_PREDICATE, {"a": 1}).to_json()
POLICY = {
    "default": [{"type": "reject"}],
    "transports": {
        "docker": {
            "registry.example/web": [
                {"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchRepository"}},
                {"type": "sigstoreSigned", "keyData": base64.b64encode(PEM).decode()},
            ],
            "*.example": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}],
        },
        "oci": {"/srv": [{"type": "insecureAcceptAnything"}]},
    },
}


def bundle(data: bytes) -> None:
    found = Bundle.parse(data)
    assert Bundle.parse(found.to_json()) == found
    Statement.parse(found.payload_type, found.payload)


def statement(data: bytes) -> None:
    found = Statement.parse(IN_TOTO_TYPE, data)
    assert Statement.parse(IN_TOTO_TYPE, found.to_json()) == found


def simple(data: bytes) -> None:
    found = Payload.parse(data)
    assert Payload.parse(found.to_json("x")) == found


def policy(data: bytes) -> None:
    found = Policy.parse(data, "policy", Path("/"))
    for name in ("registry.example/web:1", f"a.example/b@{DIGEST}", "oci:/srv/x:1"):
        for requirement in found.requirements(parse_reference(name))[1]:
            for key in requirement.key_data:
                PublicKey.parse(key, "key")
            requirement.identity.refuses(parse_reference(name), "registry.example/web:1")


def key(data: bytes) -> None:
    assert PublicKey.parse(PublicKey.parse(data, "key").pem, "key")


def cosign_key(data: bytes) -> None:
    cosign.decrypt(data, b"x", "key")


def referrers(data: bytes) -> None:
    in_layout(Index.parse(data), REF_NAME, DIGEST, "", lambda digest: json.dumps(MANIFEST).encode())


def encrypted() -> bytes:
    kdf = {"name": "scrypt", "params": {"N": 2, "r": 1, "p": 1}, "salt": "AAAA"}
    key = hashlib.scrypt(b"x", salt=bytes(3), n=2, r=1, p=1, dklen=32)
    cipher = {"name": "nacl/secretbox", "nonce": base64.b64encode(bytes(24)).decode()}
    box = nacl.secret.SecretBox(key).encrypt(b"a key", bytes(24)).ciphertext
    value = {"kdf": kdf, "cipher": cipher, "ciphertext": base64.b64encode(box).decode()}
    text = base64.b64encode(json.dumps(value).encode()).decode()
    return (
        f"-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----\n{text}\n-----END ENCRYPTED COSIGN PRIVATE KEY-----\n".encode()
    )


PAYLOAD = Payload(DIGEST, "registry.example/web:1").to_json("x")
TARGETS = {
    "bundle": Target(bundle, lambda: [Bundle(IN_TOTO_TYPE, STATEMENT, b"s", "h").to_json()], (b'"dsseEnvelope"',)),
    "statement": Target(statement, lambda: [STATEMENT], (b'"subject"', b'"digest"')),
    "simple-signature": Target(simple, lambda: [PAYLOAD], (b'"critical"',)),
    "policy": Target(policy, lambda: [json.dumps(POLICY).encode()], (b'"reject"', b'"keyData"', b'"keyPaths"')),
    "public-key": Target(key, lambda: [PEM]),
    "cosign-key": Target(cosign_key, lambda: [encrypted()]),
    "referrers": Target(referrers, lambda: [json.dumps(INDEX).encode()]),
}
