"""The certificates a build may carry: public ones, and nothing else.

An artifact is published; a private key in it is a leak. So a PEM file given to a build may hold CERTIFICATE blocks
(RFC 7468) and nothing more, and each must be one.
"""

from __future__ import annotations

import re
from pathlib import Path

from runner.errors import BadInput

PEM_MAX_BYTES = 4 << 20  # Debian's whole CA bundle is 0.2 MiB

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[^-]*-----END \1-----", re.ASCII)
_PRIVATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----", re.ASCII)


def holds_private_key(data: bytes) -> bool:
    """Whether `data` has the beginning of a PEM private key anywhere in it."""
    return _PRIVATE.search(data) is not None


def read_certificates(path: Path, what: str) -> bytes:
    """The PEM certificates in file `path`, each block checked, text between them left out; `what` names the setting.

    BadInput: cannot be read, no certificate, a damaged one, or any private key (with the option that takes keys).
    """
    try:
        with path.open("rb") as file:
            data = file.read(PEM_MAX_BYTES + 1)
    except OSError as err:
        raise BadInput(f"{what}: cannot read {path}: {err.strerror}") from err
    return check_certificates(data, f"{what}: {path}")


def check_certificates(data: bytes, what: str) -> bytes:
    """The certificate blocks of `data`, one after the other; errors as read_certificates."""
    from cryptography import x509

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
    for number, block in enumerate(blocks, 1):
        try:
            x509.load_pem_x509_certificate(block)
        except ValueError as err:
            raise BadInput(f"{what}: certificate {number} is damaged") from err
    return b"".join(block.replace(b"\r\n", b"\n") + b"\n" for block in blocks)
