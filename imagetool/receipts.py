"""Receipts: small JSON files that say what was made of what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import RootdiskError
from runner.files import write_json


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt at `path`; RootdiskError where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as err:
        raise RootdiskError(f"{path.name} of {path.parent.name} is missing", "doit build makes it") from err
    except ValueError as err:
        raise RootdiskError(f"{path} is damaged", "remove it and start doit build again") from err
    assert isinstance(value, dict)
    return value


def write_receipt(path: Path, value: Mapping[str, Any], *, durable: bool = False) -> None:
    """`value` at `path`, whole or not at all. doit's own records are not synced either, so few receipts need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value, durable=durable)
