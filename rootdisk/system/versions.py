"""JSON files with a version: read it before anything else, and leave files of other versions alone.

A file without `version` has version 1: the first release did not write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rootdisk.durable import read_json, write_json

_VERSION_MAX = 1 << 31


class OtherVersion(ValueError):
    """A file of a version that this release does not know. Do not change or delete it."""


def check_version(value: Mapping[str, Any], known: int) -> None:
    """Check the `version` of a file against `known`.

    Raises:
        OtherVersion: It is older or newer. The message continues a sentence that names the file.
        ValueError: It is not a version.
    """
    version = value.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version < _VERSION_MAX:
        raise ValueError("version is not a number")
    if version != known:
        advice = ": update rootdisk" if version > known else ""
        raise OtherVersion(f"has version {version}; this rootdisk reads version {known}{advice}")


def read_versioned(path: Path, known: int) -> dict[str, Any]:
    """Return the JSON object in the file `path`.

    Raises:
        OSError: The file cannot be read.
        OtherVersion: It has another version than `known`.
        ValueError: It is damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    check_version(value, known)
    return value


def has_other_version(path: Path, known: int) -> bool:
    """Return whether the file `path` is intact and has another version than `known`."""
    try:
        read_versioned(path, known)
    except OtherVersion:
        return True
    except (OSError, ValueError):
        pass
    return False


def write_versioned(
    path: Path, value: Mapping[str, Any], version: int, mode: int = 0o644, *, durable: bool = True
) -> bool:
    """Replace the file `path` with `value` and its version. Return False if it has another version and was left alone.

    Raises:
        OSError: The file cannot be written.
    """
    if has_other_version(path, version):
        return False
    write_json(path, {**value, "version": version}, mode, durable=durable)
    return True
