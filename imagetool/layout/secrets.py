"""Find private keys in what a build adds, by their form: an artifact is published, so a key in it is a leak.

    in_bytes(data), in_stream(file) -> the kind of key, in words; "" if there is none
    `unread` gets the reason if an archive was not searched to its end

docs/reference/secrets.md says what is found and what is not; keep both the same. A rule is a short text that is in every
key of a kind; DER is parsed far enough to be sure. imagetool/layout/archives.py searches archives and compressed data.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import BinaryIO, NamedTuple

from rootdisk.compression import GZIP, ZSTD

PIECE_BYTES = 1 << 20
OVERLAP_BYTES = 32 << 10  # of two pieces: no key is longer, except RSA of more than 100,000 bits
TEXT_MAX_BYTES = 4 << 20  # in longer text, only base64 of text is found
BASE64_MAX_BYTES = 64 << 10
DEPTH_MAX = 4  # base64 in an archive in an archive …


class _Rule(NamedTuple):
    """Rule for a kind of key: `anchor` is in each of them, and nearly nowhere else; then `pattern` decides."""

    kind: str
    anchor: bytes
    pattern: re.Pattern[bytes] | None = None


# Programs contain a key's first line too. So key data has to follow it, and more of it after a quotation mark.
_LINE_END = rb"\s|\\+[nr]|&#1[03];|%0[AD]"
_FOLLOWED = rb"(?:(?:" + _LINE_END + rb")*(?:[A-Za-z0-9+/=]{2}|\Z)|(?:[\"'+,]|" + _LINE_END + rb")*[A-Za-z0-9+/]{24})"
_RULES = (
    _Rule(
        "a PEM private key",
        b"PRIVATE KEY",
        re.compile(rb"---(?:--BEGIN [A-Z0-9 ]*|- BEGIN SSH2 ENCRYPTED )PRIVATE KEY(?: BLOCK)? ?----(?:-)?" + _FOLLOWED, re.ASCII),
    ),
    _Rule("a PuTTY private key", b"PuTTY-User-Key-File-", re.compile(rb"PuTTY-User-Key-File-[0-9]: ?[a-z]")),
    _Rule("an OpenSSH private key", b"openssh-key-v1\0", re.compile(rb"openssh-key-v1\0\0\0\0.[a-z]", re.DOTALL)),
    _Rule("an age identity", b"AGE-SECRET-KEY-", re.compile(rb"AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{16}")),
    _Rule("an age identity", b"age-secret-key-", re.compile(rb"age-secret-key-(?:pq-)?1[0-9a-z]{16}")),
    _Rule("a GnuPG private key", b"private-key", re.compile(rb"(?:\A|\n)Key: \((?:protected-)?private-key")),
)  # fmt: skip
_GNUPG = (b"(11:private-key(", b"(21:protected-private-key(")
# In base64 a text has three forms, depending on where it begins in a group of three bytes.
_IN_BASE64 = {
    b"PRIVATE KEY-----": "a PEM private key in base64",
    b"PRIVATE KEY BLOCK-----": "a PGP private key in base64",
    b"PuTTY-User-Key-File-": "a PuTTY private key in base64",
    b"openssh-key-v1\0": "an OpenSSH private key in base64",
    b"AGE-SECRET-KEY-1": "an age identity in base64",
}
_JWK = re.compile(rb'\\?"(?:d|k)\\?"\s*:\s*\\?"[A-Za-z0-9_-]{16,}')
_JWK_SYMMETRIC = re.compile(rb'\\?"kty\\?"\s*:\s*\\?"oct')
_JWK_BYTES = 16 << 10
_RUN = re.compile(rb"[A-Za-z0-9+/_-]{24,}(?:[ \t]*(?:[\r\n]|\\[nr])(?:\s|\\[nr])*[A-Za-z0-9+/_-]{2,})*={0,2}")
_LINE = re.compile(rb"(?:[\r\n]|\\[nr])[ \t]*(?=M[A-Za-z0-9+/_-]{15})")  # 'M' is what DER's base64 begins with
_WHITE = re.compile(rb"\\[nr]|[\s=]+")

_RSA = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01"  # PKCS #1 and its variants
_EC = b"\x2a\x86\x48\xce\x3d\x02\x01"
_DSA = b"\x2a\x86\x48\xce\x38\x04\x01"
_DH = b"\x2a\x86\x48\x86\xf7\x0d\x01\x03\x01"
_EDWARDS = tuple(b"\x2b\x65" + bytes((last,)) for last in (0x6E, 0x6F, 0x70, 0x71))  # X25519, X448, Ed25519, Ed448
_KEY_OIDS = (_RSA, _EC, _DSA, _DH, *_EDWARDS)
_ENCRYPTION_OIDS = (b"\x2a\x86\x48\x86\xf7\x0d\x01\x05", b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01")  # PKCS #5, #12
_PKCS7 = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07"
_KEY_BAGS = (b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x01", b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x02")
# The beginning of a key's DER after the outermost header: a version, then an algorithm or a number as long as a key.
_DER_START = re.compile(rb"\x02\x01[\x00\x01](?:\x30|\x02[\x41\x81\x82]|\x04[\x1c\x20\x30\x42])")
_SEQUENCE, _INTEGER, _OCTETS, _OID = 0x30, 0x02, 0x04, 0x06
_PGP_TAGS = (5, 7)  # RFC 9580: secret key, secret subkey
_PGP_ALGORITHMS = frozenset((1, 2, 3, 16, 17, 18, 19, 20, 22, 25, 26, 27, 28))


def in_bytes(data: bytes, depth: int = 0, unread: list[str] | None = None) -> str:
    """Return the kind of private key in `data`, also inside archives; "" if there is none."""
    return in_stream(io.BytesIO(data), depth, unread)


def in_stream(file: BinaryIO, depth: int = 0, unread: list[str] | None = None) -> str:
    """Search a file like `in_bytes`. The file must be seekable."""
    from imagetool.layout import archives

    unread = [] if unread is None else unread
    head = file.read(TEXT_MAX_BYTES + 1)
    kind = _beginning(head) or _anywhere(head)
    if not kind and depth >= DEPTH_MAX and archives.is_archive(head):
        unread.append(f"archives in it are more than {DEPTH_MAX} deep")
    if kind or depth >= DEPTH_MAX:
        return kind
    if len(head) <= TEXT_MAX_BYTES and b"\0" not in head[:4096]:
        kind = _in_base64(head, depth, unread)
    window = head
    while not kind and (piece := file.read(PIECE_BYTES)):
        window = window[-OVERLAP_BYTES:] + piece
        kind = _anywhere(window)
    if kind:
        return kind
    file.seek(0)
    return archives.search(file, head, lambda member: in_stream(member, depth + 1, unread), unread)


def _beginning(data: bytes) -> str:
    """Return the kind of a key that is recognised by the beginning of the file."""
    if data[:1] == b"\x30":
        return _der_key(data, 0) or _encrypted(data)
    if data.startswith(_GNUPG):
        return "a GnuPG private key"
    return "a PGP private key" if _is_pgp_key(data) else ""


def _anywhere(data: bytes) -> str:
    if data.count(0) == len(data):
        return ""
    for kind, anchor, pattern in _RULES:
        if anchor in data and (pattern is None or pattern.search(data)):
            return kind
    if b"kty" in data and _is_jwk(data):
        return "a JSON web key"
    if b"\0" not in data:
        return next((kind for anchor, kind in _BASE64_ANCHORS if anchor in data), "")
    if any(anchor in data for anchor in _WIDE_ANCHORS):
        return "a PEM private key in UTF-16"
    for start in _DER_START.finditer(data):
        for head in (2, 3, 4):  # bytes of the header before it
            at = start.start() - head
            if at >= 0 and data[at] == _SEQUENCE and (key := _der_key(data, at)):
                return key
    return ""


def _in_base64(text: bytes, depth: int, unread: list[str]) -> str:
    """Search the base64 in `text`, over several lines too. If all of the text is base64, search what it encodes."""
    for run in _RUN.finditer(text):
        encoded = run[0]
        is_whole_text = len(encoded) * 10 > len(text) * 9  # except a name, perhaps
        data = _decoded(encoded if is_whole_text else encoded[:BASE64_MAX_BYTES])
        kind = in_bytes(data, depth + 1, unread) if is_whole_text or data[:2] in _MAGICS else _beginning(data)
        if not kind:  # a line of words before it may belong to the same run
            starts = (
                line.end() for line in _LINE.finditer(encoded) if _may_be_der(_decoded(encoded[line.end() :][:16]))
            )
            kind = next(filter(None, (_beginning(_decoded(encoded[at : at + BASE64_MAX_BYTES])) for at in starts)), "")
        if kind:
            return kind if kind.endswith("in base64") else f"{kind} in base64"
    return ""


def _decoded(coded: bytes) -> bytes:
    plain = _WHITE.sub(b"", coded).translate(_STANDARD)
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4))
    except binascii.Error:  # one letter too many
        return base64.b64decode(plain[: len(plain) & ~3])


def _may_be_der(data: bytes) -> bool:
    return data[:1] == b"\x30" and any(data[at : at + 1] in (b"\x02", b"\x30") for at in (2, 3, 4))


_STANDARD = bytes.maketrans(b"-_", b"+/")
_MAGICS = (b"PK", b"BZ", b"\xfd7", GZIP, ZSTD[:2])  # the first two bytes


def _is_jwk(data: bytes) -> bool:
    """Return whether there is a JSON object with kty and a secret number: d of RSA, EC and OKP keys, k of symmetric ones."""
    at = data.find(b"kty")
    while at >= 0:
        start = max(data.rfind(b"{", max(0, at - _JWK_BYTES), at), 0)
        end = data.find(b"}", at, at + _JWK_BYTES)
        jwk = data[start : end if end >= 0 else at + _JWK_BYTES]
        for secret in _JWK.finditer(jwk):
            if secret[0].lstrip(b"\\")[1:2] == b"d" or _JWK_SYMMETRIC.search(jwk):
                return True
        at = data.find(b"kty", at + 3)
    return False


def _der_key(data: bytes, at: int) -> str:
    """Return the kind of private key whose DER begins at `at`: PKCS #1, PKCS #8, SEC 1, DSA, or PKCS #12 with a key."""
    outer = _element(data, at)
    if outer is None or outer.tag != _SEQUENCE:
        return ""
    parts = _elements(data, outer)
    tags = [part.tag for part in parts]
    if len(parts) < 2 or tags[0] != _INTEGER:
        return ""
    version = data[parts[0].start : parts[0].end]
    if tags[:3] == [_INTEGER, _SEQUENCE, _OCTETS] and version in (b"\0", b"\1"):
        return "a PKCS #8 private key" if _oid(data, parts[1]).startswith(_KEY_OIDS) else ""
    if tags == [_INTEGER] * 9 and version == b"\0" and parts[1].end - parts[1].start >= 64:
        return "an RSA private key"
    if tags == [_INTEGER] * 6 and version == b"\0" and parts[1].end - parts[1].start >= 64:
        return "a DSA private key"
    if tags[:2] == [_INTEGER, _OCTETS] and version == b"\1" and set(tags[2:]) <= {0xA0, 0xA1}:
        return "an EC private key" if 20 <= parts[1].end - parts[1].start <= 66 and len(tags) > 2 else ""
    if tags[:2] == [_INTEGER, _SEQUENCE] and version == b"\3" and _oid(data, parts[1]).startswith(_PKCS7):
        pkcs12 = data[at : outer.end]
        return "a PKCS #12 file with a private key" if any(bag in pkcs12 for bag in _KEY_BAGS) else ""
    return ""


def _encrypted(data: bytes) -> str:
    """Recognise PKCS #8 with a password, and PKCS #12 with indefinite lengths (BER)."""
    if data[:5] == b"\x30\x80\x02\x01\x03" and any(bag in data for bag in _KEY_BAGS):
        return "a PKCS #12 file with a private key"
    outer = _element(data, 0)
    parts = _elements(data, outer) if outer is not None else []
    if [part.tag for part in parts] == [_SEQUENCE, _OCTETS] and _oid(data, parts[0]).startswith(_ENCRYPTION_OIDS):
        return "an encrypted PKCS #8 private key"
    return ""


class _Element(NamedTuple):
    tag: int
    start: int  # of the content
    end: int


def _element(data: bytes, at: int) -> _Element | None:
    """Parse the DER element at `at`; None if there is none, or only the beginning of one."""
    head = data[at : at + 6]
    if len(head) < 2:
        return None
    length, start = head[1], at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or len(head) < 2 + count:
            return None
        length, start = int.from_bytes(head[2 : 2 + count]), start + count
    return _Element(head[0], start, start + length) if start + length <= len(data) else None


def _elements(data: bytes, outer: _Element) -> list[_Element]:
    """Return the elements of `outer`; empty unless they fill it exactly. No key has more than ten elements."""
    elements: list[_Element] = []
    at = outer.start
    while at < outer.end and len(elements) <= 10:
        inner = _element(data, at)
        if inner is None or inner.end > outer.end:
            return []
        elements.append(inner)
        at = inner.end
    return elements if at == outer.end else []


def _oid(data: bytes, sequence: _Element) -> bytes:
    first = _element(data, sequence.start)
    return data[first.start : first.end] if first is not None and first.tag == _OID else b""


def _is_pgp_key(data: bytes) -> bool:
    """A binary secret key: RFC 9580, sections 4.2 and 5.5.3."""
    if len(data) < 12 or not data[0] & 0x80:
        return False
    if data[0] & 0x40:
        tag, head = data[0] & 0x3F, 2 if data[1] < 192 else 3 if data[1] < 224 else 6
        length = (
            data[1] if head == 2 else ((data[1] - 192) << 8) + data[2] + 192 if head == 3 else int.from_bytes(data[2:6])
        )
    else:
        tag, head = data[0] >> 2 & 0x0F, (2, 3, 5, 12)[data[0] & 3]
        length = int.from_bytes(data[1:head])
    body, end = data[head : head + 6], head + length
    if tag not in _PGP_TAGS or len(body) < 6 or body[0] not in (4, 5, 6) or body[5] not in _PGP_ALGORITHMS:
        return False
    return end == len(data) or (end < len(data) and data[end] >= 0x80)  # another packet follows


def _forms(text: bytes) -> list[bytes]:
    """Return the forms of base64 of `text` between other bytes, without the letters that depend on those."""
    forms = []
    for shift in range(3):
        coded = base64.b64encode(bytes(shift) + text + bytes(-(shift + len(text)) % 3))
        forms.append(coded[(0, 2, 3)[shift] : (8 * (shift + len(text))) // 6])
    return forms


_BASE64_ANCHORS = tuple((form, kind) for text, kind in _IN_BASE64.items() for form in _forms(text))
_WIDE_ANCHORS = tuple("PRIVATE KEY-----".encode(coding) for coding in ("utf-16-le", "utf-16-be"))
