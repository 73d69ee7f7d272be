"""The authority of a sandbox with secrets: a certificate that its programs trust, and one of it for the hosts of secrets.

The authority's key is forgotten as soon as it has signed, so nobody can have another certificate of it.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence

from rootdisk.errors import RootdiskError

_YEARS = 10  # a kept sandbox gets new ones at each start


def check_installed() -> None:
    """Check that certificates can be made here; RootdiskError says what to install."""
    try:
        import cryptography.x509
    except ImportError as err:
        raise RootdiskError(
            "--secret needs the package cryptography, which is not installed", "pip install 'rootdisk[verify]'"
        ) from err
    assert cryptography.x509


def make(names: Sequence[str]) -> tuple[str, bytes]:
    """Return a new authority's certificate, and key and certificate for the hosts `names`; both PEM."""
    check_installed()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    end = start + datetime.timedelta(days=366 * _YEARS)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"rootdisk sandbox {os.urandom(4).hex()}")])
    hosts = [x509.DNSName(name) for name in dict.fromkeys(names)]
    signing, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )

    def begin(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        """Return what both certificates have."""
        return (
            x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), start, end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        )

    authority = (
        begin(issuer, signing.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **usage), critical=True
        )
        .add_extension(x509.NameConstraints(permitted_subtrees=hosts, excluded_subtrees=None), critical=True)
        .sign(signing, hashes.SHA256())
    )
    server = (
        begin(x509.Name([]), own.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **usage), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=True)
        .sign(signing, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return authority.public_bytes(pem).decode(), key + server.public_bytes(pem)
