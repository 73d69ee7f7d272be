"""Certificates and keys in PEM (RFC 7468): describe what is wrong with a file. Its content is never shown."""

from __future__ import annotations

import binascii
import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

PEM_MAX_BYTES = 4 << 20  # Debian's whole bundle of authorities is 0.2 MiB

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,60})-----")
_CERTIFICATES = (b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE")
_KEY = b"PRIVATE KEY"
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_VERSION, _GENERALIZED = 0xA0, 0x18
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SEQUENCE = b"\x30"  # that a certificate, a key or PKCS #12 in DER begins with


class Fault(NamedTuple):
    """The end of a sentence that begins with a file's name, and a hint."""

    what: str
    hint: str = ""


def lack_of_certificate(data: bytes) -> Fault | None:
    """Return why `data` contains no certificate; None if it has the first and last line of one."""
    labels = _BEGIN.findall(data)
    if found := [label for label in labels if label in _CERTIFICATES]:
        if all(b"-----END " + label + b"-----" in data for label in found):
            return None
        return Fault("ends in the middle of a certificate", "copy the file again")
    if any(label.endswith(_KEY) for label in labels):
        return Fault("has a private key and no certificate", "name the file with the certificate")
    return _other(data, labels, "certificate", "openssl x509 -inform DER -in FILE -out FILE.pem")


def lack_of_key(data: bytes) -> Fault | None:
    """Return why `data` contains no private key; None if it has one."""
    labels = _BEGIN.findall(data)
    if any(label.endswith(_KEY) for label in labels):
        return None
    if any(label in _CERTIFICATES for label in labels):
        return Fault("has a certificate and no private key", "name the file with the key")
    return _other(data, labels, "private key", "openssl pkey -inform DER -in FILE -out FILE.pem")


def out_of_date(data: bytes, now: float) -> str:
    """Return that none of the certificates in `data` is valid at `now` (Unix seconds), as the end of a sentence; "" if one is.

    Also "" if it cannot be told: the program that uses the file says what is wrong with it.
    """
    today = time.strftime("%Y%m%d%H%M%S", time.gmtime(now))
    spans = [_validity(match[1]) for match in _BLOCK.finditer(data)]
    if not spans or any(span is None or span[0] <= today <= span[1] for span in spans):
        return ""
    if len(spans) > 1 or spans[0] is None:
        return f"none of its {len(spans)} certificates is valid today"
    first, last = spans[0]
    return (
        f"its certificate is valid from {_day(first)} on"
        if first > today
        else f"its certificate was valid until {_day(last)}"
    )


def _day(text: str) -> str:
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}"


def _validity(block: bytes) -> tuple[str, str] | None:
    """Return from when until when a certificate is valid, as YYYYMMDDhhmmss; None if it is damaged. RFC 5280, section 4.1."""
    try:
        (_, certificate), *_ = _elements(binascii.a2b_base64(block))
        (_, signed), *_ = _elements(certificate)
        fields = [content for tag, content in _elements(signed) if tag != _VERSION]
        first, last = (_time(tag, content.decode("ascii")) for tag, content in _elements(fields[3]))
    except (ValueError, IndexError):
        return None
    return first, last


def _time(tag: int, text: str) -> str:
    """Return a UTCTime or GeneralizedTime as YYYYMMDDhhmmss."""
    full = text if tag == _GENERALIZED else f"{'20' if text < '5' else '19'}{text}"
    if not re.fullmatch("[0-9]{14}Z", full):
        raise ValueError("not a time")
    return full[:14]


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of DER elements (X.690) that follow each other; ValueError or IndexError if they are damaged."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, at = int.from_bytes(data[at : at + count]), at + count
        if at + length > len(data):
            raise ValueError("an element that ends too early")
        yield tag, data[at : at + length]
        at += length


def belong(certificate: bytes, key: bytes) -> bool:
    """Return whether the first certificate is for `key`; also if that cannot be told, as of a key with a password."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with _as_file(certificate) as first, _as_file(key) as second:
        try:
            context.load_cert_chain(first, second, password=_no_password)
        except ssl.SSLError as err:
            return err.reason != "KEY_VALUES_MISMATCH"
    return True


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Yield the name of a file in memory: load_cert_chain() reads files only, and none on a disk is to have a key."""
    with open(os.memfd_create("part.pem", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        file.write(data)
        yield f"/proc/self/fd/{file.fileno()}"


def _no_password() -> bytes:
    return b""


def _other(data: bytes, labels: list[bytes], wanted: str, convert: str) -> Fault:
    if not data.strip():
        return Fault("is empty")
    if labels:
        return Fault(f"has no {wanted}: it is PEM of another kind ({labels[0].decode().lower()})")
    if data.startswith(_SEQUENCE):
        return Fault("is DER, which has to be PEM", f"{convert}; for a .p12: openssl pkcs12 -in FILE -out FILE.pem")
    if data.startswith(_UTF16):
        return Fault("is UTF-16, which has to be plain ASCII", "iconv -f UTF-16 -t ASCII FILE > FILE.pem")
    return Fault(f"has no PEM {wanted} in it")
