"""The certificates a build may carry: public ones, and nothing else.

An artifact is published; a private key in it is a leak. So a PEM file given to a build may hold CERTIFICATE blocks
(RFC 7468) and nothing more, and each must be one.
"""

from __future__ import annotations

import re

from runner.errors import BadInput

PEM_MAX_BYTES = 4 << 20  # Debian's whole CA bundle is 0.2 MiB

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[^-]*-----END \1-----", re.ASCII)
_PRIVATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----", re.ASCII)


def holds_private_key(data: bytes) -> bool:
    """Whether `data` has the beginning of a PEM private key anywhere in it."""
    return _PRIVATE.search(data) is not None


def check_certificates(data: bytes, what: str) -> bytes:
    """The PEM certificates in `data`, one after the other, each checked, text between them left out.

    BadInput names `what`: too large, no certificate, a damaged one, or any private key (with the option that takes keys).
    """
    import ssl  # takes a while to load, and few builds have certificates

    if len(data) > PEM_MAX_BYTES:
        raise BadInput(f"{what}: larger than {PEM_MAX_BYTES >> 20} MiB", "is it a PEM file?")
    if holds_private_key(data):
        raise BadInput(
            f"{what}: holds a private key, and a build is published",
            "leave it out and give it to each sandbox: runner boot --tls-key FILE",
        )
    blocks = [match.group(0) for match in _BLOCK.finditer(data) if match.group(1) == b"CERTIFICATE"]
    if not blocks:
        raise BadInput(f"{what}: no PEM certificate in it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for number, block in enumerate(blocks, 1):
        try:
            der = ssl.PEM_cert_to_DER_cert(block.decode())
            # OpenSSL reads as many as there are; one sequence of a two-byte length is all there may be.
            if der[:2] != b"\x30\x82" or int.from_bytes(der[2:4]) != len(der) - 4:
                raise ValueError("not one certificate")
            context.load_verify_locations(cadata=der)
        except (ValueError, ssl.SSLError) as err:
            raise BadInput(f"{what}: certificate {number} is damaged") from err
    return b"".join(block.replace(b"\r\n", b"\n") + b"\n" for block in blocks)
