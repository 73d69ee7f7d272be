"""What may go from the store: what no sandbox uses, the longest unused first.

Only files whose names are this version's are looked at. While a sandbox cannot be read, nothing goes that it may need:
then only temporary files of killed processes do.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import NamedTuple

from rootdisk.errors import Busy, RootdiskError
from rootdisk.system.locks import remove_idle
from rootdisk.text import printable
from runner.sandbox import directory
from runner.store.names import read_name
from runner.store.store import Store

_FORMS = {
    "disks": re.compile(r"([0-9a-f]{64})\.(?:raw|chunks|partial)\Z|\.([0-9a-f]{64})\.chunks\.[0-9a-f]{16}\Z"),
    "blobs": re.compile(r"([0-9a-f]{64}|[0-9a-f]{128})\Z|\.([0-9a-f]{64}|[0-9a-f]{128})\.[0-9a-f]{16}\Z"),
}
_VERDICT = re.compile(r"([0-9a-f]{64}|[0-9a-f]{128})\.json\Z")
_NAME = re.compile(r"[0-9a-f]{64}\Z")
_TEMPORARY = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}\Z")
_LOCK = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?(?:\.make)?\Z")
_CLOCK_STEP_NS = 2_000_000_000  # of the coarsest file systems
_WRITING_S = 3600  # a temporary file may still be somebody's for that long


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
    directory.sweep(store)
    look = _Needed(store)
    needed = look.now()
    things = sorted(_things(store), key=lambda thing: thing.used)
    left = sum(thing.bytes for thing in things)
    removed: list[tuple[Path, int]] = []
    failed: RootdiskError | None = None
    for thing in things:
        if time.time() - thing.used < age_s or (max_bytes is not None and left <= max_bytes):
            continue
        if not _removable(thing, needed):
            continue
        try:
            with store.removing(thing.digest):
                # Once more: a sandbox may have been made, and have ended, while others were removed.
                sizes = [(path, path.lstat().st_blocks * 512) for path in _removable(thing, look.now())]
                if not dry_run:
                    for path, _ in sizes:
                        path.unlink()
                    if sizes:
                        store.unmark(thing.digest)
                removed += sizes
                left -= sum(size for _, size in sizes)
        except Busy:
            pass
        except RootdiskError as err:  # as on a disk with no room for a lock: others may still go
            failed = err
        except OSError as err:
            failed = RootdiskError(f"cannot remove {printable(err.filename)}: {err.strerror}")
    if not dry_run:
        _forget(store)
        for path in (store.root / "locks").iterdir():
            if _LOCK.match(path.name):
                remove_idle(path)
        for path in (store.root / "damaged").iterdir():
            if _NAME.match(path.name) and not store.damage(path.name):
                store.unmark(path.name)  # the disk went, and its prune was killed then
    if failed is not None and not removed:
        raise failed
    return removed


class _Needed:
    """What sandboxes need now. They are read again only if one has come or gone."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = 0  # when, by the clock of the file system, before the last reading
        self._needed: set[str] | None = None

    def now(self) -> set[str] | None:
        changed = self._store.sandboxes.stat().st_mtime_ns
        if changed != self._changed:
            began = time.time_ns()
            needed = directory.needed(self._store)
            # Another change within the clock's step would not be seen.
            self._changed = changed if began - changed > _CLOCK_STEP_NS else 0
            self._needed = needed
        return self._needed


def _removable(thing: _Thing, needed: set[str] | None) -> list[Path]:
    """The files of `thing` that no sandbox needs; `needed` None: it is not known what they need."""
    if needed is not None and thing.digest in needed:
        return []
    found = []
    for path in thing.files:
        with contextlib.suppress(FileNotFoundError):
            is_old = time.time() - path.lstat().st_mtime > _WRITING_S
            if is_old if path.name.startswith(".") else needed is not None:
                found.append(path)
    return found


def _things(store: Store) -> list[_Thing]:
    found: dict[str, list[Path]] = {}
    for folder, form in _FORMS.items():
        for path in (store.root / folder).iterdir():
            if name := form.match(path.name):
                found.setdefault(name[1] or name[2], []).append(path)
    things = []
    for digest, files in found.items():
        with contextlib.suppress(FileNotFoundError):
            infos = [path.lstat() for path in files]
            blocks = sum(info.st_blocks * 512 for info in infos)
            # A disk goes before its index, so that no index is left without knowing why.
            files.sort(key=lambda path: path.suffix != ".raw")
            things.append(_Thing(digest, tuple(files), blocks, max(info.st_mtime for info in infos)))
    return things


def _forget(store: Store) -> None:
    """Names whose manifest has gone. One that cannot be read stays, until its reference is asked for again."""
    _forget_verdicts(store)
    for path in (store.root / "names").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if _TEMPORARY.match(path.name):
                gone = time.time() - path.lstat().st_mtime > _WRITING_S
            else:
                name = read_name(path) if _NAME.match(path.name) else None
                gone = name is not None and not (store.root / "blobs" / name.manifest).exists()
            if gone:
                path.unlink()


def _forget_verdicts(store: Store) -> None:
    """Remove what policies said of manifests that are not there any more."""
    with contextlib.suppress(FileNotFoundError):
        for path in (store.root / "trust").iterdir():
            found = _VERDICT.match(path.name)
            if found and not (store.root / "blobs" / found[1]).exists():
                path.unlink(missing_ok=True)
