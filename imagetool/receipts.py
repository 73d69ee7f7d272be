"""Receipts: small JSON files that say what was made of what, and with which digests.

Each has its own digest in it, so what a receipt says is what was written; and what it says of files is checked before they
are used again: what does not agree is made again, with one line.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rootdisk.durable import write_json
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest, canonical_json
from rootdisk.oci.fields import parse_value
from rootdisk.text import one_line

CHECK = "receipt"  # the key of a receipt's own digest
MAX_BYTES = 16 << 20
PIECE_BYTES = 1 << 20


class Damaged(RootdiskError):
    """Something kept is not what was recorded when it was made."""


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt at `path`; RootdiskError if it is missing, Damaged if it is not what was written."""
    try:
        value = parse_value(path.read_bytes(), path.name, MAX_BYTES)
    except FileNotFoundError as err:
        raise RootdiskError(f"{path.name} of {path.parent.name} is missing", "doit build makes it") from err
    except OSError as err:
        raise Damaged(f"{path}: {err.strerror}", "remove it and start doit build again") from err
    except BadInput:
        value = None
    if not isinstance(value, dict) or value.pop(CHECK, None) != _check(value):
        raise Damaged(f"{path} is damaged, or an older rootdisk's", "remove it and start doit build again")
    return value


def write_receipt(path: Path, value: Mapping[str, Any], *, durable: bool = False) -> None:
    """`value` at `path`, whole or not at all. doit's own records are not synced either, so few receipts need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**value, CHECK: _check(value)}, durable=durable)


def check_file(path: Path, digest: object) -> None:
    """Damaged if the file at `path` is missing, or is not what `digest` (as a receipt has it) names."""
    hashed = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                hashed.update(piece)
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
