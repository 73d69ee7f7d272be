"""Receipts: small JSON files that say what was made from what, and with which digests.

A receipt is a frozen value with `parse` and `to_json`, of one kind and version; imagetool/build/receipts.py lists them all.
Its file holds its own digest, so what a receipt says is what was written. What it says of files is checked before they are
used again. Whatever is wrong with one (damaged, cut off, of an older or newer version, a field missing or of another type)
has one meaning, Damaged: what it is about is made again, with one line.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from rootdisk.durable import opener, read_file, write_json
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest, canonical_json
from rootdisk.oci.fields import Fields, parse_value
from rootdisk.text import one_line

CHECK = "receipt"  # the key of a receipt's own digest
FORMAT = "format"  # the key of its version; none means 0, from before they were counted
MAX_BYTES = 16 << 20
PIECE_BYTES = 1 << 20
HINT = "remove it and start doit build again"


class Damaged(RootdiskError):
    """A kept file is not what was recorded when it was made."""


class Receipt(Protocol):
    """A checked receipt."""

    FORMAT: ClassVar[int]  # to raise when a field comes, goes or gets another meaning

    @classmethod
    def parse(cls, value: Fields) -> Self:
        """Check each field of `value`; BadInput names the one that is wrong."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value for `parse`."""


R = TypeVar("R", bound=Receipt)


def load(path: Path, kind: type[R]) -> R:
    """Read the receipt of `kind` at `path`.

    Raises:
        RootdiskError: it is missing.
        Damaged: it is not what was written, or is of another version or form.
    """
    value = read_receipt(path)
    version = value.pop(FORMAT, 0)
    if type(version) is not int or version != kind.FORMAT:
        age = "a newer" if type(version) is int and version > kind.FORMAT else "an older"
        raise Damaged(f"{path} is {age} rootdisk's", HINT)
    try:
        receipt = kind.parse(Fields(value, path.name))
    except BadInput as err:
        raise Damaged(f"{path} is damaged", HINT) from err
    if receipt.to_json() != value:  # a field that is missing and has a default, or one more
        raise Damaged(f"{path} is damaged", HINT)
    return receipt


def save(path: Path, receipt: Receipt, *, durable: bool = False) -> None:
    """Write `receipt` to `path`, whole or not at all; `durable` as in `write_receipt`."""
    write_receipt(path, {FORMAT: receipt.FORMAT, **receipt.to_json()}, durable=durable)


def read_receipt(path: Path) -> dict[str, Any]:
    """Return the receipt at `path`; RootdiskError if it is missing, Damaged if it is not what was written."""
    try:
        value = parse_value(read_file(path, MAX_BYTES), path.name, MAX_BYTES)
    except FileNotFoundError as err:
        raise RootdiskError(f"{path.name} of {path.parent.name} is missing", "doit build makes it") from err
    except OSError as err:
        raise Damaged(f"{path}: {err.strerror}", HINT) from err
    except (BadInput, ValueError):
        value = None
    if not isinstance(value, dict) or value.pop(CHECK, None) != _check(value):
        raise Damaged(f"{path} is damaged, or an older rootdisk's", HINT)
    return value


def write_receipt(path: Path, value: Mapping[str, Any], *, durable: bool = False) -> None:
    """Write `value` to `path`, whole or not at all. doit's own records are not synced either, so few receipts need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**value, CHECK: _check(value)}, durable=durable)


def check_file(path: Path, digest: object) -> None:
    """Damaged if the file at `path` is missing, or is not what `digest` (as a receipt has it) names."""
    try:
        with open(path, "rb", opener=opener) as file:
            hashed = hashlib.file_digest(file, "sha256")
    except OSError as err:
        raise Damaged(f"{path}: {err.strerror}") from err
    if f"sha256:{hashed.hexdigest()}" != str(digest):
        raise Damaged(f"{path} is damaged")


def made_again(err: RootdiskError) -> None:
    """Say the one line."""
    print(f"{one_line(err.message)}; it is made again", file=sys.stderr, flush=True)


def _check(value: Mapping[str, Any]) -> str:
    # As it will be read: keys are strings then, and tuples lists.
    return str(Digest.of(canonical_json(json.loads(json.dumps(value)))))
