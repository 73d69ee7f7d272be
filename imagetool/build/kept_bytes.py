"""Small files of the cache that are only there to save time: bytes behind their sha256. A wrong one is as good as none."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from rootdisk.durable import opener

_DIGEST_BYTES = 32


def recall(path: Path) -> bytes | None:
    """Return what `remember` has written; None if it is missing or damaged."""
    try:
        raw = recall_unchecked(path)
    except OSError:
        return None
    data = raw[_DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == raw[:_DIGEST_BYTES] else None


def remember(path: Path, data: bytes) -> None:
    """Write `data`, whole or not at all."""
    remember_unchecked(path, hashlib.sha256(data).digest() + data)


def recall_unchecked(path: Path) -> bytes:
    """Read bytes that their reader checks. OSError: there are none."""
    with open(path, "rb", opener=opener) as file:
        return file.read()


def remember_unchecked(path: Path, data: bytes) -> None:
    """Write bytes that their reader checks."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    partial.write_bytes(data)
    partial.replace(path)
