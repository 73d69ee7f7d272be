"""Private keys in what a build adds: every form that docs/reference/secrets.md says is found, and what is no key."""

from __future__ import annotations

import base64
import bz2
import datetime
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x448, x25519
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from imagetool.config import images
from imagetool.layout import secrets
from rootdisk.errors import BadInput
from tests.support.steps import LINEAR, growth

PLAIN = serialization.NoEncryption()
LOCKED = serialization.BestAvailableEncryption(b"secret")
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
PKCS8, TRADITIONAL = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
CODED = {DER: "DER", PEM: "PEM"}
OPENSSH = serialization.PrivateFormat.OpenSSH

MADE: dict[str, Any] = {
    "rsa 1024": rsa.generate_private_key(65537, 1024),
    "rsa 2048": rsa.generate_private_key(65537, 2048),
    "rsa 3072": rsa.generate_private_key(65537, 3072),
    "ec p256": ec.generate_private_key(ec.SECP256R1()),
    "ec p384": ec.generate_private_key(ec.SECP384R1()),
    "ec p521": ec.generate_private_key(ec.SECP521R1()),
    "ec k256": ec.generate_private_key(ec.SECP256K1()),
    "dsa": dsa.generate_private_key(1024),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ed448": ed448.Ed448PrivateKey.generate(),
    "x25519": x25519.X25519PrivateKey.generate(),
    "x448": x448.X448PrivateKey.generate(),
}
NUMBERS = MADE["rsa 2048"].private_numbers()


def certificate() -> x509.Certificate:
    key = MADE["ec p256"]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rootdisk.test")])
    now = datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(1))
    return builder.sign(key, hashes.SHA256())


CERTIFICATE = certificate()


def letters(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8)).rstrip(b"=").decode()


def pgp(new: bool) -> bytes:
    """A binary secret key as gpg --export-secret-keys writes it, as far as a reader needs it to know; a user ID follows."""
    body = b"\x04" + bytes(4) + b"\x16" + os.urandom(80)
    head = bytes((0xC5, len(body))) if new else b"\x94" + bytes((len(body),))
    return head + body + (b"\xcd\x04" if new else b"\xb4\x04") + b"user"


def keys() -> Iterator[tuple[str, bytes]]:
    for name, key in MADE.items():
        for encryption, how in ((PLAIN, "plain"), (LOCKED, "locked")):
            for encoding in (DER, PEM):
                yield f"{name} pkcs8 {how} {CODED[encoding]}", key.private_bytes(encoding, PKCS8, encryption)
        if name.startswith(("rsa", "ec", "dsa")):
            for encoding in (DER, PEM):
                yield f"{name} traditional {CODED[encoding]}", key.private_bytes(encoding, TRADITIONAL, PLAIN)
        if name in ("rsa 2048", "ec p256", "ed25519"):
            armored = key.private_bytes(PEM, OPENSSH, PLAIN)
            yield f"{name} openssh", armored
            yield f"{name} openssh binary", base64.b64decode(b"".join(armored.splitlines()[1:-1]))
    for encryption, how in ((PLAIN, "plain"), (LOCKED, "locked")):
        for name in ("rsa 2048", "ec p256"):
            yield (
                f"pkcs12 {name} {how}",
                pkcs12.serialize_key_and_certificates(
                    b"n", MADE[name], CERTIFICATE if name == "ec p256" else None, None, encryption
                ),
            )
    yield (
        "putty",
        b"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: x\nPublic-Lines: 2\nAAAA\nPrivate-Lines: 1\nAAAA\n",
    )
    yield (
        "age",
        b"# created: 2026\n# public key: age1x\nAGE-SECRET-KEY-1QYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQS5GU8X9\n",
    )
    yield "pgp armored", b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ==\n-----END PGP PRIVATE KEY BLOCK-----\n"
    yield "pgp binary", pgp(True)
    yield "pgp binary, old form", pgp(False)
    yield "gnupg", b"(11:private-key(3:rsa(1:n3:abc)))"
    yield "gnupg, its new form", b"Created: 20260101T000000\nKey: (protected-private-key (ecc (curve Ed25519)))\n"
    yield "ssh2", b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nabc\n"
    yield (
        "jwk rsa",
        json.dumps({"kty": "RSA", "n": letters(NUMBERS.p * NUMBERS.q), "e": "AQAB", "d": letters(NUMBERS.d)}).encode(),
    )
    yield (
        "jwk ec",
        json.dumps(
            {"keys": [{"kty": "EC", "crv": "P-256", "x": "a" * 43, "y": "b" * 43, "d": "c" * 43}]}, indent=1
        ).encode(),
    )
    yield "jwk oct", json.dumps({"k": "c" * 43, "kty": "oct"}).encode()
    yield (
        "jwk in a text",
        json.dumps({"text": json.dumps({"kty": "OKP", "crv": "Ed25519", "d": "c" * 43, "x": "a" * 43})}).encode(),
    )
    yield "pem in utf-16", MADE["ed25519"].private_bytes(PEM, PKCS8, PLAIN).decode().encode("utf-16")


KEYS = dict(keys())
NONE = {
    "certificate": CERTIFICATE.public_bytes(PEM),
    "certificate in DER": CERTIFICATE.public_bytes(DER),
    "trusted certificates in PKCS #12": pkcs12.serialize_java_truststore([pkcs12.PKCS12Certificate(CERTIFICATE, b"a")], PLAIN),
    **{
        f"public {name} {CODED[encoding]}": key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        for name, key in MADE.items()
        for encoding in (DER, PEM)
    },
    "public ssh": MADE["ed25519"].public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH),
    "public jwk": json.dumps({"kty": "RSA", "n": "a" * 300, "e": "AQAB", "kid": "d"}).encode(),
    "age recipient": b"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kudxvpt4sz0pq6g",
    "public pgp": b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQ==\n-----END PGP PUBLIC KEY BLOCK-----\n",
    "a program's words": b"-----BEGIN RSA PRIVATE KEY-----\0PuTTY-User-Key-File-\0openssh-key-v1\0%s\0(private-key(rsa(n%m)))AGE-SECRET-KEY-\0",
    "a source": b'START = "-----BEGIN OPENSSH PRIVATE KEY-----"\nEND = "-----END OPENSSH PRIVATE KEY-----"\n',
    "words": b"A private key is a PRIVATE KEY, and -----BEGIN CERTIFICATE----- is none. " * 1000,
    "random": os.urandom(3 << 20),
    "random in base64": base64.encodebytes(os.urandom(3 << 20)),
    "nothing": b"",
    "zeros": bytes(100_000),
    "Python": Path(os.__file__).read_bytes(),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_found(case: str) -> None:
    key = KEYS[case]
    assert secrets.in_bytes(key)
    if not case.startswith(("pkcs12", "pgp binary", "gnupg", "pem in utf")) and not (
        "locked" in case and "DER" in case
    ):
        assert secrets.in_bytes(b"\x7fELF" + bytes(1000) + key + b"\xff" * 100)  # and in the middle of something else
        assert secrets.in_bytes(b"a text\n" * 1000 + key + b"\nmore")


@pytest.mark.parametrize("case", KEYS)
def test_found_in_base64(case: str) -> None:
    key = KEYS[case]
    coded = base64.b64encode(key)
    for form in (
        coded,
        base64.urlsafe_b64encode(key).rstrip(b"="),
        base64.encodebytes(key),
        b"kind: Secret\ndata:\n  tls.key: " + coded + b"\n  other: x\n",
        b'{"key": "' + base64.encodebytes(key).replace(b"\n", b"\\n") + b'"}',
        b"key: |\n    " + base64.encodebytes(key).replace(b"\n", b"\n    "),
        b"a_line_of_words_that_could_be_base64_too\n" + base64.encodebytes(key),
    ):
        if form is not coded and case.startswith(("pgp binary", "pem in utf-16", "jwk", "gnupg", "ssh2")):
            continue  # only if that is all there is
        assert secrets.in_bytes(form), form[:200]


def a_tar(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for one, content in (("a/first", b"x" * 5000), (name, data), ("z", b"")):
            member = tarfile.TarInfo(one)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def a_zip(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first", b"x" * 5000)
        archive.writestr(name, data)
    return out.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip, two members": lambda data: gzip.compress(b"first") + gzip.compress(data),
    "bzip2": bz2.compress,
    "bzip2, two streams": lambda data: bz2.compress(b"first") + bz2.compress(data),
    "xz": lzma.compress,
    "xz, two streams": lambda data: lzma.compress(b"first") + lzma.compress(data),
    "zstd": zstandard.compress,
    "zstd, two frames": lambda data: zstandard.compress(b"first") + zstandard.compress(data),
    "tar": lambda data: a_tar("k\x1b", data),
    "zip": lambda data: a_zip("k\x1b", data),
    "tar.gz": lambda data: gzip.compress(a_tar("k", data)),
    "tar.xz": lambda data: lzma.compress(a_tar("k", data)),
    "zip in a tar": lambda data: a_tar("a.zip", a_zip("k", data)),
    "gzip in gzip": lambda data: gzip.compress(gzip.compress(data)),
    "gzip in a tar": lambda data: a_tar("a.gz", gzip.compress(data)),
    "bzip2, xz and zstd in a zip": lambda data: a_zip("a.bz2", bz2.compress(lzma.compress(zstandard.compress(data)))),
    "jar in a jar": lambda data: a_zip("a.jar", a_zip("k", data)),
    "gzip in base64": lambda data: base64.b64encode(gzip.compress(data)),
    "a text with gzip in base64": lambda data: (
        b"chart: " + base64.b64encode(gzip.compress(data)) + b"\n" + b"x: y\n" * 500
    ),
    "after a mebibyte": lambda data: gzip.compress(b"first " * 300_000 + b"\n" + data),
    "cut": lambda data: gzip.compress(data + os.urandom(100_000))[:-50_000],
}


@pytest.mark.parametrize("end", ["\n", "\\n", "\\\\n", "&#10;", "%0A", " ", "\r\n", '\\n" +\n  "', "'\n'"])
def test_pem_in_other_languages(end: str) -> None:
    pem = KEYS["ed25519 pkcs8 plain PEM"].decode().replace("\n", end)
    assert secrets.in_bytes(f'key = "{pem}";\n'.encode()) == "a PEM private key"


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize(
    "case",
    ["rsa 2048 pkcs8 plain DER", "ec p256 traditional DER", "ed25519 openssh", "age", "rsa 2048 pkcs8 locked PEM"],
)
def test_found_in_archives(how: str, case: str) -> None:
    found = secrets.in_bytes(PACKED[how](KEYS[case]))
    assert found
    assert found.isprintable()


@pytest.mark.parametrize("case", NONE)
def test_not_found(case: str) -> None:
    data = NONE[case]
    assert secrets.in_bytes(data) == ""
    if case not in ("a program's words", "a source"):  # told by the words alone in base64
        assert secrets.in_bytes(base64.b64encode(data)) == ""
    assert secrets.in_bytes(gzip.compress(data)) == ""
    assert secrets.in_bytes(a_tar("a", data)) == ""


@pytest.mark.parametrize(
    "magic", [b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", a_tar("a", b"b")[:600]]
)
def test_archives_that_are_damaged_are_no_error(magic: bytes) -> None:
    for tail in (b"", bytes(1000), os.urandom(5000)):
        assert secrets.in_bytes(magic + tail) == ""


def test_a_key_across_two_pieces(tmp_path: Path) -> None:
    for before in (secrets.TEXT_MAX_BYTES, secrets.TEXT_MAX_BYTES + secrets.PIECE_BYTES):
        for shift in (-1500, -700, -10, -1, 0, 1):
            path = tmp_path / "f"
            path.write_bytes(bytes(before + shift) + KEYS["rsa 2048 traditional DER"] + bytes(3 << 20))
            with path.open("rb") as file:
                assert secrets.in_stream(file) == "an RSA private key"


@pytest.mark.parametrize(
    "text",
    [
        b"M" * 30 + b"\n",
        b" \n" * 40 + b"A" * 30,
        b"{kty}",
        b"A" * 24 + b" \t" * 20 + b"\n",
        b"\x02\x01\x00\x30",
        b"\\n" * 30,
    ],
)
def test_searching_costs_what_there_is(text: bytes) -> None:
    assert growth(lambda count: lambda: secrets.in_bytes(text * count), 1000) < LINEAR


def test_a_bomb_costs_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound nothing is looked for, and that is what the documents say."""
    from imagetool.layout import archives

    monkeypatch.setattr(archives, "INFLATED_MAX_BYTES", 1 << 20)
    key = KEYS["age"]
    assert secrets.in_bytes(gzip.compress(bytes(900_000) + key))
    assert secrets.in_bytes(gzip.compress(bytes(5 << 20) + key)) == ""


UNREAD: dict[str, tuple[bytes, str]] = {
    "long": (gzip.compress(bytes(5 << 20)), "it holds more than 1 MiB"),
    "long in a tar": (a_tar("a", bytes(2 << 20)), "it holds more than 1 MiB"),
    "long in a zip": (a_zip("a", bytes(2 << 20)), "it holds more than 1 MiB"),
    "many in a tar": (b"".join(a_tar(str(n), b"")[: 13 * 512] for n in range(5)) + bytes(1024), "it holds more than 10 files"),
    "deep": (gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"x"))))), "are more than 4 deep"),
    "cut": (gzip.compress(os.urandom(5000))[:-1000], "not all of it can be read"),
    "cut in base64": (base64.b64encode(gzip.compress(os.urandom(5000))[:-1000]), "not all of it can be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_not_looked_through_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    """An archive past the bounds: one line that names the file, unless it is allowed by name."""
    from imagetool.layout import archives

    monkeypatch.setattr(archives, "INFLATED_MAX_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MEMBERS_MAX_COUNT", 10)
    data, why = UNREAD[case]
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(data)
    name = f"/{case}/\x1b/a"
    body = f'[[image.a.files]]\npath = "/{case}/\\u001b"\nfrom = "d"\n'
    assert load(tmp_path, body + f'[image.a.allow_secret]\n"/{case}/\\u001b/a" = "why"\n')
    assert capfd.readouterr().err == ""
    assert load(tmp_path, body)
    shown = name.replace("\x1b", "\\x1b")
    said = capfd.readouterr().err
    assert said.startswith(f"imagetool: {shown}: not looked through to its end for private keys: ")
    assert said.endswith(f"{why}\n")
    assert said.count("\n") == 1
    assert load(tmp_path, body)
    assert capfd.readouterr().err == ""  # once for all images


def test_what_is_looked_through_whole_needs_no_remark(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, how in enumerate(PACKED):
        if how != "cut":
            (tmp_path / str(number)).write_bytes(PACKED[how](b"words " * 100))
            assert load(tmp_path, f'[[image.a.files]]\npath = "/whole/{number}"\nfrom = "{number}"\n')
    assert load(tmp_path, '[image.a.env]\nA = "H4sIAAAAAAAAA"\n')
    said = capfd.readouterr().err
    assert "/whole" not in said


def load(tmp_path: Path, body: str) -> images.Image:
    (image,) = images.parse(f'[image.a]\nsource = "oci:x:t"\n{body}', tmp_path / "images.toml")
    return image


def test_a_build_with_a_key_is_refused_by_name_and_allowed_with_a_reason(tmp_path: Path) -> None:
    der = KEYS["rsa 2048 pkcs8 plain DER"]
    (tmp_path / "d").mkdir()
    (tmp_path / "d/k.der").write_bytes(der)
    (tmp_path / "ca.pem").write_bytes(CERTIFICATE.public_bytes(PEM))
    (tmp_path / "e").write_text("A=1\nK=" + base64.b64encode(der).decode() + "\n")
    age = KEYS["age"].decode().splitlines()[-1]
    cases = {
        '[[image.a.files]]\npath = "/x"\nfrom = "d"': "/x/k.der",
        f'[[image.a.files]]\npath = "/y"\ntext = "{age}"': "/y",
        'env_files = ["e"]': "K",
        f'[image.a.env]\nTOKEN = "{age}"': "TOKEN",
        f'[image.a.labels]\nl = "{age}"': "l",
        f'[image.a.process]\ncmd = ["sh", "{age}"]': "process.cmd",
    }
    for body, name in cases.items():
        with pytest.raises(BadInput, match=r"holds a.*published: leave it out.*runner boot") as caught:
            load(tmp_path, body)
        assert f'allow_secret = {{ "{name}" = "why" }}' in str(caught.value)
        assert str(caught.value).isprintable()
        allowed = f'{body}\n[image.a.allow_secret]\n"{name}" = "a key of the tests"\n'
        assert load(tmp_path, allowed)
        with pytest.raises(BadInput, match="gives no reason"):
            load(tmp_path, allowed.replace("a key of the tests", " "))
        with pytest.raises(BadInput, match="is nothing that is added"):
            load(tmp_path, allowed + '"/typo" = "x"\n')


def test_what_is_allowed_is_no_part_of_the_key(tmp_path: Path) -> None:
    from imagetool.build import derivation

    body = '[[image.a.files]]\npath = "/y"\ntext = "t"\n'
    plain, allowed = load(tmp_path, body), load(tmp_path, body + '[image.a.allow_secret]\n"/y" = "why"\n')
    assert derivation.settings(plain) == derivation.settings(allowed)


@pytest.mark.parametrize("case", ["ec p256 pkcs8 plain DER", "pkcs12 ec p256 plain", "putty"])
def test_certificates_with_a_key_in_any_form(tmp_path: Path, case: str) -> None:
    for key in (KEYS[case], base64.encodebytes(KEYS[case])):
        (tmp_path / "ca.pem").write_bytes(CERTIFICATE.public_bytes(PEM) + key)
        if case.startswith("pkcs12") and key is KEYS[case]:
            continue  # told by its beginning only
        with pytest.raises(BadInput, match="holds a"):
            load(tmp_path, '[image.a.tls]\nca = "ca.pem"')


def test_the_command_line() -> None:
    from imagetool.commands.options import image_of
    from imagetool.parser import parser as command_line

    age = KEYS["age"].decode().splitlines()[-1]
    arguments = ["build", "-e", f"K={age}", "oci:x:t", "oci:y:t"]
    with pytest.raises(BadInput, match="K: holds an age identity"):
        image_of(command_line().parse_args(arguments))
    for wrong in ("K=", "K"):
        with pytest.raises(BadInput, match=r"gives no reason|--allow-secret NAME=REASON"):
            image_of(command_line().parse_args(["build", "--allow-secret", wrong, *arguments[1:]]))
    made = image_of(command_line().parse_args(["build", "--allow-secret", "K=of the tests", *arguments[1:]]))
    assert made.env == (f"K={age}",)
