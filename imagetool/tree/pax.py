"""Extended headers of tars: numbers, PAX records, xattrs, ACLs and sparse maps. Pure functions over bytes.

Follows POSIX.1-2017 pax(1), tar(5) of libarchive, star(5) for SCHILY.*, and the GNU tar manual, "Storing Sparse Files".
Everything wrong raises Malformed with a text; the scanner adds which layer and entry.
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from imagetool.tree.index import Segments, Xattrs
from rootdisk.errors import BadInput
from rootdisk.parsing.ids import id_or_none, parse_id
from rootdisk.text import printable

XATTR_NAME_MAX_BYTES = 255  # XATTR_NAME_MAX, include/uapi/linux/limits.h; not NAME_MAX, though the same number
XATTR_MAX_BYTES = 64 << 10  # XATTR_SIZE_MAX
XATTRS_MAX_COUNT = 256  # of an entry: an inode and a block of attributes have room for 253 and a few
SEGMENTS_MAX_COUNT = 1 << 16
NUMBER_MAX = (1 << 63) - 1

_LENGTH = re.compile(rb"[0-9]{1,8}\Z")
_DECIMAL = re.compile(rb"\+?[0-9]{1,19}\Z")
_TIME = re.compile(rb"([+-]?)([0-9]{1,64})(?:\.([0-9]*))?\Z")


class Malformed(ValueError):
    """Something in a header is wrong; the text says what."""


@lru_cache(maxsize=8192)
def number(field: bytes) -> int:
    """A header's number: octal text, or GNU's base 256 (first bit set), which may be negative. Empty is 0."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (len(field) * 8 - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (len(field) * 8 - 1)
        return value
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if not digits:
        return 0
    if not digits.isdigit():  # int() takes signs, underscores and 0o too
        raise Malformed(f"{digits!r} is not an octal number")
    try:
        return int(digits, 8)
    except ValueError:
        raise Malformed(f"{digits!r} is not an octal number") from None


def has_prefix(block: bytes) -> bool:
    """Return whether the name in a header begins at byte 345.

    GNU's headers have times there, except those that Go before 1.8 wrote, and with it Docker: as Go's reader, tell them apart
    by whether the times are numbers.
    """
    if block[257:263] == b"ustar\0":
        return True
    if block[257:265] != b"ustar  \0":
        return False
    try:
        number(block[345:357])
        number(block[357:369] if block[357] else b"\0")
    except Malformed:
        return block[345:500].partition(b"\0")[0].isascii()
    return False


def decimal(value: bytes, what: str) -> int:
    """A PAX record's unsigned number, below 2^63. It may have a plus sign, which Go takes too."""
    if not _DECIMAL.match(value) or int(value) > NUMBER_MAX:
        raise Malformed(f"{what} is {value[:40]!r}, not a number")
    return int(value)


@lru_cache(maxsize=8192)
def id_number(value: bytes) -> int:
    """Return a PAX record's user or group number."""
    try:
        return parse_id(value.decode("ascii", "replace").removeprefix("+"))
    except BadInput as err:
        raise Malformed(err.message) from None


def time_ns(value: bytes) -> int:
    """A PAX time, decimal seconds since the epoch with a fraction, as ns; digits past the ninth are cut."""
    match = _TIME.match(value)
    if not match:
        raise Malformed(f"time is {value[:40]!r}")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * 1_000_000_000 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if sign == b"-" else nanoseconds


def records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The key and value of each `LENGTH KEY=VALUE\\n` record, in order."""
    found = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 9)
        if space < 0 or not _LENGTH.match(data[at:space]):
            if not data[at:].strip(b"\0"):
                break  # some writers count the padding in
            raise Malformed("an extended header's record has no length")
        end = at + int(data[at:space])
        if not space < end <= len(data) or data[end - 1] != 0x0A:
            raise Malformed("an extended header's record has a wrong length")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise Malformed("an extended header's record has no key")
        found.append((key, value))
        at = end
    return found


_MEANINGFUL = frozenset(
    (b"path", b"linkpath", b"uid", b"gid", b"size", b"mtime", b"SCHILY.devmajor", b"SCHILY.devminor")
)


def says_something(key: bytes) -> bool:
    """Return whether a record with this key changes how an entry is read (not counting those of sparse files)."""
    return key in _MEANINGFUL or key.startswith((b"SCHILY.xattr.", b"LIBARCHIVE.xattr.", b"SCHILY.acl."))


LEFT_OUT = b"\0"  # in an index, begins the name of an entry for an invalid attribute; the rest is its name
ACLS = {b"SCHILY.acl.access": b"system.posix_acl_access", b"SCHILY.acl.default": b"system.posix_acl_default"}


def xattrs(pax: dict[bytes, bytes]) -> Xattrs | None:
    """Return the extended attributes by full name, in the form that getxattr(2) gives; None if there are none.

    An invalid attribute is under a name that begins with LEFT_OUT, and its value is the reason. For a name of ACLS, the value is
    the ACL's text: it may be valid with the image's accounts.
    """
    attributes: Xattrs = {}
    wrong: Xattrs = {}
    for key, value in pax.items():
        if key.startswith(b"SCHILY.xattr."):
            attributes[key[13:]] = value  # libarchive writes both forms; this one is exact
        elif key.startswith(b"LIBARCHIVE.xattr."):
            name = unquote_to_bytes(key[17:])
            try:
                padded = value + b"=" * (-len(value) % 4)  # libarchive writes no padding
                attributes.setdefault(name, binascii.a2b_base64(padded, strict_mode=True))
            except ValueError:
                wrong[name] = b"its value is not base64"
    # Check each only if one is wrong: a global header may give 64 to each of millions of entries.
    if b"" in attributes or b"\0" in b"".join(attributes) or max(map(len, (*attributes, b""))) > XATTR_NAME_MAX_BYTES:
        wrong |= dict.fromkeys(filter(_cannot_be_a_name, attributes), b"its name cannot be one")
    if max(map(len, (*attributes.values(), b""))) > XATTR_MAX_BYTES:
        long = (name for name, value in attributes.items() if len(value) > XATTR_MAX_BYTES and name not in wrong)
        wrong |= dict.fromkeys(long, b"it is longer than 64 KiB")
    if wrong:
        attributes = {name: value for name, value in attributes.items() if name not in wrong}
        for name, why in wrong.items():
            attributes[LEFT_OUT + name.replace(b"\0", b"\\0")[:XATTR_NAME_MAX_BYTES]] = why
    for key, name in ACLS.items():
        if key in pax and name not in attributes:
            try:
                value = posix_acl(pax[key], minimal_is_none=key.endswith(b"access"))
            except Malformed:
                name, value = LEFT_OUT + key, pax[key][:XATTR_MAX_BYTES]
            if value:
                attributes[name] = value
    if len(attributes) > XATTRS_MAX_COUNT:
        for name in sorted(attributes)[XATTRS_MAX_COUNT:]:
            del attributes[name]
        attributes[LEFT_OUT + b"and more"] = b"a file has more than 256 attributes"
    return attributes or None


def _cannot_be_a_name(name: bytes) -> bool:
    return not 0 < len(name) <= XATTR_NAME_MAX_BYTES or b"\0" in name


_TAGS = {  # of an entry without and with a name; include/uapi/linux/posix_acl.h
    b"user": (0x01, 0x02),
    b"group": (0x04, 0x08),
    b"mask": (0x10, 0),
    b"other": (0x20, 0),
}
_ACL_ID_NONE = 0xFFFF_FFFF
Lookup = Callable[[str, str], int | None]  # "user" or "group", and a name


def posix_acl(text: bytes, *, minimal_is_none: bool, lookup: Lookup | None = None) -> bytes:
    """Return the value of system.posix_acl_* for an ACL in text: include/uapi/linux/posix_acl_xattr.h, version 2.

    star adds the number after a name (`user:lisa:r-x:502`); a name alone is looked up by `lookup`. If `minimal_is_none`,
    an ACL that says no more than the mode is b"".

    Raises:
        Malformed: The text is not an ACL, or a name is not known.
    """
    return _posix_acl(text, minimal_is_none) if lookup is None else _acl(text, minimal_is_none, lookup)


@lru_cache(maxsize=256)  # many files have the same, and a global header gives one to all
def _posix_acl(text: bytes, minimal_is_none: bool) -> bytes:
    return _acl(text, minimal_is_none, lambda kind, name: None)


def _acl(text: bytes, minimal_is_none: bool, lookup: Lookup) -> bytes:
    entries = []
    for item in text.replace(b"\n", b",").split(b","):
        item = item.partition(b"#")[0].strip()
        if not item:
            continue
        fields = item.split(b":")
        kind = {b"u": b"user", b"g": b"group", b"m": b"mask", b"o": b"other"}.get(fields[0], fields[0])
        tags = _TAGS.get(kind)
        if tags is not None and tags[1] == 0 and len(fields) == 2:
            fields.insert(1, b"")  # `other:r--`, as Solaris has it
        if tags is None or not 3 <= len(fields) <= 4 or not re.fullmatch(rb"[r-][w-][x-]", fields[2]):
            raise Malformed(f"its entry '{printable(item, 80)}' is not understood")
        permissions = sum(bit for bit, letter in zip((4, 2, 1), fields[2], strict=True) if letter != 0x2D)
        if not fields[1]:
            entries.append((tags[0], permissions, _ACL_ID_NONE))
            continue
        id_ = id_or_none((fields[3] if len(fields) == 4 else fields[1]).decode("utf-8", "surrogateescape"))
        if id_ is None:
            id_ = lookup(kind.decode(), fields[1].decode("utf-8", "surrogateescape"))
        if not tags[1] or id_ is None:
            raise Malformed(f"the image has no {printable(kind)} '{printable(fields[1], 80)}'")
        entries.append((tags[1], permissions, id_))
    if not entries or (minimal_is_none and len(entries) <= 3 and all(id_ == _ACL_ID_NONE for _, _, id_ in entries)):
        return b""
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def segments(pairs: list[tuple[int, int]], real_size: int, stored: int, offset: int) -> Segments | None:
    """A sparse map as File.segments. `pairs` are (offset in the file, length); `stored` bytes of data lie at `offset`.

    None where the file has no hole. Malformed unless the pairs ascend within the file and use up the stored bytes.
    """
    if len(pairs) > SEGMENTS_MAX_COUNT:
        raise Malformed(f"sparse map has {len(pairs)} parts, more than {SEGMENTS_MAX_COUNT}")
    found: list[tuple[int, int, int]] = []
    end = used = 0
    for start, length in pairs:
        if start < end or length < 0 or start + length > real_size:
            raise Malformed(f"sparse map: {length} bytes at {start} do not fit")
        if length:
            if found and start == end:
                before = found[-1]
                found[-1] = (before[0], before[1], before[2] + length)
            else:
                found.append((start, offset + used, length))
        end = start + length
        used += length
    if used != stored:
        raise Malformed(f"sparse map uses {used} of {stored} stored bytes")
    return None if used == real_size else tuple(found)


def sparse_format(values: dict[bytes, bytes], numbers: list[int], stored: int) -> str:
    """Return the GNU sparse format of a file with `stored` bytes of data: "0", "1.0", or "" if it is not sparse.

    `numbers` are the map of format 0.0. A format that is not known describes nothing, as in Go's archive/tar.
    """
    version = values.get(b"GNU.sparse.major", b""), values.get(b"GNU.sparse.minor", b"")
    if version == (b"1", b"0"):
        return "1.0"
    if version in ((b"0", b"0"), (b"0", b"1")):
        return "0"
    if version != (b"", b""):
        return ""
    is_hole = not stored and values.get(b"GNU.sparse.numblocks") == b"0"  # and no map
    return "0" if numbers or values.get(b"GNU.sparse.map") or is_hole else ""


def sparse_pairs(numbers: list[int]) -> list[tuple[int, int]]:
    """Offsets and lengths by turns, as pairs."""
    if len(numbers) % 2:
        raise Malformed("sparse map has an odd number of numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
