"""What may go from the store: what no sandbox uses, the longest unused first."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

from runner import sandbox
from runner.errors import Busy
from runner.files import locked
from runner.local import read_name
from runner.store import Store


class _Thing(NamedTuple):
    """What one digest names: a disk with its index, a fetch that was cut off, or a blob."""

    digest: str
    files: tuple[Path, ...]
    bytes: int
    used: float  # when last, Unix time


def prune(store: Store, age_s: float, max_bytes: int | None, *, dry_run: bool) -> list[tuple[Path, int]]:
    """Remove what has not been used for `age_s` seconds and by no sandbox; which files, and their bytes.

    With `max_bytes` only until the store holds no more than that. What is in use is never touched: it is leased.
    """
    sandbox.sweep(store)
    kept = {digest for state in sandbox.states(store) for digest in state.spec.uses}
    things = sorted(_things(store), key=lambda thing: thing.used)
    left = sum(thing.bytes for thing in things)
    removed: list[tuple[Path, int]] = []
    for thing in things:
        if thing.digest in kept or time.time() - thing.used < age_s or (max_bytes is not None and left <= max_bytes):
            continue
        with contextlib.suppress(Busy), locked(store.root / "locks" / thing.digest, timeout_s=0):
            sizes = [(path, path.stat().st_blocks * 512) for path in thing.files if path.exists()]
            if not dry_run:
                for path, _ in sizes:
                    path.unlink()
            removed += sizes
            left -= thing.bytes
    if not dry_run:
        _forget(store)
    return removed


def _things(store: Store) -> list[_Thing]:
    found: dict[str, list[Path]] = {}
    for folder in ("disks", "blobs"):
        for path in (store.root / folder).iterdir():
            found.setdefault(path.name.lstrip(".").partition(".")[0], []).append(path)
    things = []
    for digest, files in found.items():
        with contextlib.suppress(FileNotFoundError):
            infos = [path.stat() for path in files]
            blocks = sum(info.st_blocks * 512 for info in infos)
            # A disk goes before its index, so that no index is left without knowing why.
            files.sort(key=lambda path: path.suffix != ".raw")
            things.append(_Thing(digest, tuple(files), blocks, max(info.st_mtime for info in infos)))
    return things


def _forget(store: Store) -> None:
    """Names whose manifest has gone."""
    for path in (store.root / "names").iterdir():
        name = read_name(path)
        if name is None or not (store.root / "blobs" / name.manifest).exists():
            path.unlink(missing_ok=True)
