"""Check the certificates that a build may carry: public ones, and nothing else.

An artifact is published; a private key in it is a leak. So a PEM file given to a build may hold only
CERTIFICATE blocks (RFC 7468), and each must be a certificate.
"""

from __future__ import annotations

import base64
import re

from imagetool.layout import secrets
from rootdisk.errors import BadInput
from rootdisk.parsing import pem

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[^-]*-----END \1-----", re.ASCII)
_SEQUENCE, _BIT_STRING = 0x30, 0x03
_CERTIFICATE = [_SEQUENCE, _SEQUENCE, _BIT_STRING]  # what is signed, how, and the signature
_DEPTH_MAX = 16


def check_certificates(data: bytes, what: str) -> bytes:
    """Return the PEM certificates in `data`, each checked, without the text between them.

    Raises:
        BadInput: `data` has no certificate or a damaged one, or holds a private key. It names `what`.
    """
    if key := secrets.in_bytes(data):
        raise BadInput(
            f"{what}: holds {key}, and a build is published",
            "remove it and give it to each sandbox: runner boot --tls-key FILE",
        )
    blocks = [match.group(0) for match in _BLOCK.finditer(data) if match.group(1) == b"CERTIFICATE"]
    if not blocks:
        fault = pem.lack_of_certificate(data) or pem.Fault("has no PEM certificate in it")
        raise BadInput(f"{what}: it {fault.what}", fault.hint)
    for number, block in enumerate(blocks, 1):
        try:
            if not _is_certificate(base64.b64decode(b"".join(block.splitlines()[1:-1]), validate=True)):
                raise ValueError("not one certificate")
        except ValueError as err:
            raise BadInput(f"{what}: certificate {number} is damaged") from err
    return b"".join(block.replace(b"\r\n", b"\n") + b"\n" for block in blocks)


def _is_certificate(der: bytes) -> bool:
    """Return whether `der` has the form of one Certificate (RFC 5280, section 4.1), with correct lengths.

    The guest checks the content: loading a library that parses all of it would take longer than rebuilding a disk.
    """
    outer = _elements(der)
    return [tag for tag, _ in outer] == [_SEQUENCE] and [tag for tag, _ in _elements(outer[0][1])] == _CERTIFICATE


def _elements(data: bytes, depth: int = 0) -> list[tuple[int, bytes]]:
    """Return tag and content of the DER elements (X.690) in `data`, after checking inner ones; ValueError if a length is wrong."""
    elements: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        head = data[at : at + 2]
        if len(head) < 2 or head[0] & 0x1F == 0x1F or depth > _DEPTH_MAX:
            raise ValueError("not DER")
        at += 2
        length = head[1]
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at : at + count])
            at += count
            if not 1 <= count <= 4 or length < 0x80:
                raise ValueError("a length that is not valid in DER")
        content = data[at : at + length]
        if len(content) != length:
            raise ValueError("an element that ends too early")
        if head[0] & 0x20:
            _elements(content, depth + 1)
        elements.append((head[0], content))
        at += length
    return elements
