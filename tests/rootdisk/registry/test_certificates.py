"""TLS files that are not what their option says: one line names the file and what it is, and nothing of it is shown."""

from __future__ import annotations

import argparse
import base64
import datetime
import os
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from rootdisk.errors import BadInput
from rootdisk.parsing import pem
from rootdisk.registry.certificates import load_authorities, load_certificates, load_pair
from rootdisk.system import notices
from runner.options import values

ONE, OTHER = trustme.CA().issue_cert("a.example"), trustme.CA().issue_cert("b.example")
CERTIFICATE, KEY = ONE.cert_chain_pems[0].bytes(), ONE.private_key_pem.bytes()
OTHER_CERTIFICATE, OTHER_KEY = OTHER.cert_chain_pems[0].bytes(), OTHER.private_key_pem.bytes()
DER = x509.load_pem_x509_certificate(CERTIFICATE).public_bytes(serialization.Encoding.DER)
LOCKED = serialization.load_pem_private_key(KEY, None).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"hunter2")
)
GOOD = {
    "plain": CERTIFICATE,
    "with CRLF": CERTIFICATE.replace(b"\n", b"\r\n"),
    "with a BOM": b"\xef\xbb\xbf" + CERTIFICATE,
    "two": CERTIFICATE + OTHER_CERTIFICATE,
    "after text": b"Subject: a\n" + CERTIFICATE,
}
BAD = {
    "empty": (b" \n", "is empty"),
    "DER": (DER, "is DER, which has to be PEM"),
    "a key": (KEY, "has a private key and no certificate"),
    "a locked key": (LOCKED, "has a private key and no certificate"),
    "cut": (CERTIFICATE[:200], "ends in the middle of a certificate"),
    "UTF-16": (CERTIFICATE.decode().encode("utf-16"), "is UTF-16, which has to be plain ASCII"),
    "a request": (
        CERTIFICATE.replace(b"CERTIFICATE", b"CERTIFICATE REQUEST"),
        "has no certificate: it is PEM of another kind (certificate request)",
    ),
    "text": (b"hello", "has no PEM certificate in it"),
}


def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def shown(err: BadInput) -> str:
    text = str(err)
    assert text.isprintable()
    assert not any(line.decode() in text for line in KEY.splitlines()[1:-1])
    return text


@pytest.mark.parametrize("name", GOOD)
def test_what_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(GOOD[name])
    load_authorities(context(), tmp_path / "a", "--ca-file")
    assert pem.lack_of_certificate(GOOD[name]) is None
    assert pem.belong(GOOD[name], KEY)


@pytest.mark.parametrize("name", BAD)
def test_what_is_not(tmp_path: Path, name: str) -> None:
    data, why = BAD[name]
    (tmp_path / "a").write_bytes(data)
    path = tmp_path / "a"
    with pytest.raises(BadInput) as caught:
        load_authorities(context(), path, "--ca-file")
    assert shown(caught.value).startswith(f"--ca-file {path} {why}")
    with pytest.raises(BadInput) as caught:
        load_pair(context(), path, path, ("--tls-cert", "--tls-key"))
    assert shown(caught.value).startswith(f"--tls-cert {path} {why}")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    """A FIFO is not waited for: the file is read again for later connections. A huge one is not read."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "damaged").write_bytes(CERTIFICATE.replace(b"MII", b"MIX"))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for path, why in (
        (tmp_path, "is not a regular file"),
        (tmp_path / "fifo", "is not a regular file"),
        (tmp_path / "huge", "is too large for a file of certificates or keys"),
        (tmp_path / "damaged", "is damaged"),
        (tmp_path / "missing", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(BadInput) as caught:
            load_authorities(context(), path, "--ca-file")
        assert why in shown(caught.value)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (OTHER_KEY, "b.key is not the key of the certificate"),
        (LOCKED, "b.key has a password"),
        (CERTIFICATE, "b.key has a certificate and no private key"),
        (b"", "b.key is empty"),
        (None, "b.key cannot be read: No such file or directory"),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, key: bytes | None, why: str) -> None:
    """Of `serve`, and of certs.d."""
    (tmp_path / "b.cert").write_bytes(CERTIFICATE)
    if key is not None:
        (tmp_path / "b.key").write_bytes(key)
    with pytest.raises(BadInput) as caught:
        load_pair(context(), tmp_path / "b.cert", tmp_path / "b.key", ("--tls-cert", "--tls-key"))
    assert why in shown(caught.value)
    with pytest.raises(BadInput) as caught:
        load_certificates(context(), tmp_path, is_client=True)
    assert why in shown(caught.value)
    load_certificates(context(), tmp_path, is_client=False)


def made(first: datetime.datetime, last: datetime.datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, first, last)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_certificates_of_another_time(tmp_path: Path) -> None:
    """A notice, not an error: a bundle has old ones, and what uses them decides. Years of two digits go from 1950 to 2049."""
    day = datetime.datetime
    now = day(2030, 6, 1, tzinfo=datetime.UTC).timestamp()
    past, coming = made(day(2001, 1, 1), day(2002, 3, 4)), made(day(2051, 1, 2), day(2060, 1, 1))
    right, damaged = made(day(1950, 1, 1), day(2070, 1, 1)), past.replace(b"MII", b"MIX")
    for data, why in (
        (past, "its certificate was valid until 2002-03-04"),
        (past.replace(b"\n", b"\r\n"), "its certificate was valid until 2002-03-04"),
        (coming, "its certificate is valid from 2051-01-02 on"),
        (past + coming, "none of its 2 certificates is valid today"),
        (past + right, ""),
        (damaged, ""),
        (past + damaged, ""),
        (b"", ""),
    ):
        assert pem.out_of_date(data, now) == why
    told: list[str] = []
    notices.show_by(told.append)
    assert records(tmp_path, tls_cert=past) == ["tls-cert"]
    assert told == [f"--tls-cert {tmp_path}/tls_cert: its certificate was valid until 2002-03-04"]


@given(st.binary(max_size=64), st.integers(0, 600))
@settings(deadline=None, max_examples=100)
def test_any_damage_is_no_error(data: bytes, at: int) -> None:
    changed = DER[:at] + data + DER[at + len(data) :]
    block = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(changed) + b"\n-----END CERTIFICATE-----\n"
    assert pem.out_of_date(block, 0).isprintable()


def records(tmp_path: Path, **files: bytes) -> list[str]:
    """The keys of the records that `boot` makes of its TLS options."""
    options = dict.fromkeys(("tls_ca", "tls_cert", "tls_key"))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    chosen = {**options, **{name: tmp_path / name for name in files}}
    return [key for key, _ in values.tls_records(argparse.Namespace(**chosen))]


def test_files_for_a_guest(tmp_path: Path) -> None:
    """They went to the guest as they were, and its programs failed. A key with a password may be wanted: it cannot be compared."""
    assert records(tmp_path, tls_cert=CERTIFICATE + KEY) == ["tls-cert"]
    assert records(tmp_path, tls_ca=OTHER_CERTIFICATE, tls_cert=CERTIFICATE, tls_key=LOCKED) == [
        "tls-ca",
        "tls-cert",
        "tls-key",
    ]
    for files, why in (
        ({"tls_cert": CERTIFICATE, "tls_key": OTHER_KEY}, "--tls-key is not the key of the certificate of --tls-cert"),
        ({"tls_cert": KEY}, f"--tls-cert {tmp_path}/tls_cert has a private key and no certificate"),
        ({"tls_key": CERTIFICATE}, f"--tls-key {tmp_path}/tls_key has a certificate and no private key"),
        ({"tls_ca": b""}, f"--tls-ca {tmp_path}/tls_ca is empty"),
        ({"tls_key": DER}, f"--tls-key {tmp_path}/tls_key is DER, which has to be PEM"),
    ):
        with pytest.raises(BadInput) as caught:
            records(tmp_path, **files)
        assert shown(caught.value).startswith(why)
