"""Certificates and keys in PEM (RFC 7468): what is wrong with a file that has none, in words. No content is ever shown."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

PEM_MAX_BYTES = 4 << 20  # Debian's whole bundle of authorities is 0.2 MiB

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,60})-----")
_CERTIFICATES = (b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE")
_KEY = b"PRIVATE KEY"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SEQUENCE = b"\x30"  # that a certificate, a key or PKCS #12 in DER begins with


class Fault(NamedTuple):
    """The end of a sentence that begins with a file's name, and a hint."""

    what: str
    hint: str = ""


def lack_of_certificate(data: bytes) -> Fault | None:
    """Return why there is no certificate in `data`; None if there is one, at least by its first and last line."""
    labels = _BEGIN.findall(data)
    if found := [label for label in labels if label in _CERTIFICATES]:
        if all(b"-----END " + label + b"-----" in data for label in found):
            return None
        return Fault("ends in the middle of a certificate", "copy the file again")
    if any(label.endswith(_KEY) for label in labels):
        return Fault("has a private key and no certificate", "name the file with the certificate")
    return _other(data, labels, "certificate", "openssl x509 -inform DER -in FILE -out FILE.pem")


def lack_of_key(data: bytes) -> Fault | None:
    """Return why there is no private key in `data`; None if there is one."""
    labels = _BEGIN.findall(data)
    if any(label.endswith(_KEY) for label in labels):
        return None
    if any(label in _CERTIFICATES for label in labels):
        return Fault("has a certificate and no private key", "name the file with the key")
    return _other(data, labels, "private key", "openssl pkey -inform DER -in FILE -out FILE.pem")


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
