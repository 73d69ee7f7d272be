"""cosign's encrypted private keys: PKCS #8 in a NaCl secretbox, with a key that scrypt makes of a passphrase.

A PEM whose content is JSON: {"kdf": {"name": "scrypt", "params": {"N", "r", "p"}, "salt"}, "cipher": {"name": "nacl/secretbox",
"nonce"}, "ciphertext"}. A secretbox is XSalsa20 with Poly1305; https://cr.yp.to/snuffle/xsalsa-20110204.pdf. XSalsa20 is in no
package that we have; of a key of some 140 bytes it is three blocks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct

from rootdisk.errors import BadInput
from rootdisk.oci.fields import Fields, parse_value

_PEM = re.compile(
    rb"\s*-----BEGIN ENCRYPTED (?:COSIGN|SIGSTORE) PRIVATE KEY-----([A-Za-z0-9+/=\s]*)"
    rb"-----END ENCRYPTED (?:COSIGN|SIGSTORE) PRIVATE KEY-----\s*\Z"
)
_MAX_BYTES = 16 << 10
_MEMORY_MAX_BYTES = 512 << 20
_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_WORD = 0xFFFF_FFFF


def is_cosign(pem: bytes) -> bool:
    """Tell whether `pem` is such a key."""
    return b"-----BEGIN ENCRYPTED COSIGN" in pem or b"-----BEGIN ENCRYPTED SIGSTORE" in pem


def decrypt(pem: bytes, passphrase: bytes, what: str) -> bytes:
    """Return the PKCS #8 key in DER form; errors name `what`.

    Raises:
        BadInput: It is malformed, or the passphrase is wrong.
    """
    found = _PEM.match(pem)
    try:
        raw = base64.b64decode(b"".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        raw = b""
    value = Fields.of(parse_value(raw or b"-", what, _MAX_BYTES), what)
    kdf, cipher = value.inner("kdf"), value.inner("cipher")
    if kdf.text("name", limit=40) != "scrypt" or cipher.text("name", limit=40) != "nacl/secretbox":
        raise BadInput(f"{what}: neither scrypt nor nacl/secretbox", "make it again with cosign generate-key-pair")
    params = kdf.inner("params")
    n, r, p = params.integer("N", 2, 1 << 24), params.integer("r", 1, 64), params.integer("p", 1, 16)
    if n & (n - 1) or 128 * n * r > _MEMORY_MAX_BYTES:
        raise kdf.wrong("params", f"N {n}, r {r} are not valid or need too much memory")
    salt, nonce, box = _bytes(kdf, "salt"), _bytes(cipher, "nonce"), _bytes(value, "ciphertext")
    if len(nonce) != 24 or len(box) < 16:
        raise BadInput(f"{what}: not complete", "make it again with cosign generate-key-pair")
    key = hashlib.scrypt(passphrase, salt=salt, n=n, r=r, p=p, maxmem=_MEMORY_MAX_BYTES + (64 << 20), dklen=32)
    opened = open_secretbox(box, nonce, key)
    if opened is None:
        raise BadInput(f"{what}: the passphrase is wrong", "set ROOTDISK_SIGN_PASSPHRASE or --passphrase-file")
    return opened


def open_secretbox(box: bytes, nonce: bytes, key: bytes) -> bytes | None:
    """Return the content of a NaCl secretbox; None if the key is wrong or the box was changed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.poly1305 import Poly1305

    tag, data = box[:16], box[16:]
    subkey = _hsalsa20(key, nonce[:16])
    stream = b"".join(_salsa20(subkey, nonce[16:], block) for block in range((len(data) + 32 + 63) // 64))
    try:
        Poly1305.verify_tag(stream[:32], data, tag)
    except InvalidSignature:
        return None
    return bytes(a ^ b for a, b in zip(data, stream[32:], strict=False))


def _rounds(state: list[int]) -> list[int]:
    x = list(state)

    def quarter(a: int, b: int, c: int, d: int) -> None:
        """Mix four words of the state."""
        for to, one, two, bits in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
            total = (x[one] + x[two]) & _WORD
            x[to] ^= (total << bits | total >> (32 - bits)) & _WORD

    for _ in range(10):
        for columns in ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)):
            quarter(*columns)
        for rows in ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)):
            quarter(*rows)
    return x


def _state(key: bytes, middle: bytes) -> list[int]:
    k, m = struct.unpack("<8I", key), struct.unpack("<4I", middle)
    return [_SIGMA[0], *k[:4], _SIGMA[1], *m, _SIGMA[2], *k[4:], _SIGMA[3]]


def _salsa20(key: bytes, nonce: bytes, block: int) -> bytes:
    state = _state(key, nonce + struct.pack("<Q", block))
    return struct.pack("<16I", *((a + b) & _WORD for a, b in zip(state, _rounds(state), strict=True)))


def _hsalsa20(key: bytes, nonce: bytes) -> bytes:
    x = _rounds(_state(key, nonce))
    return struct.pack("<8I", *(x[at] for at in (0, 5, 10, 15, 6, 7, 8, 9)))


def _bytes(value: Fields, key: str) -> bytes:
    try:
        return base64.b64decode(value.text(key, limit=_MAX_BYTES), validate=True)
    except (binascii.Error, ValueError):
        raise value.wrong(key, "not base64") from None
