"""Remove content from the store that no sandbox uses, least recently used first.

Only files with names of this version are considered. If a sandbox is unreadable, it may use anything: then only temporary
files of killed processes are removed.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.errors import Busy, RootdiskError
from rootdisk.parsing.digests import HEX_DIGEST, HEX_SHA256
from rootdisk.system.locks import remove_idle
from rootdisk.system.versions import has_other_version
from rootdisk.text import printable
from runner.sandbox import directory, snapshots
from runner.store import trust
from runner.store.names import read_name
from runner.store.store import Store
from runner.template import saved

_FORMS = {
    "disks": re.compile(rf"({HEX_SHA256})\.(?:raw|chunks|partial)\Z|\.({HEX_SHA256})\.chunks\.[0-9a-f]{{16}}\Z"),
    "blobs": re.compile(rf"({HEX_DIGEST})\Z|\.({HEX_DIGEST})\.[0-9a-f]{{16}}\Z"),
}
_VERDICT = re.compile(rf"({HEX_DIGEST})\.json\Z")
_NAME = re.compile(rf"{HEX_SHA256}\Z")
_DIGEST = re.compile(rf"{HEX_DIGEST}\Z")
_TEMPORARY = re.compile(rf"\.{HEX_SHA256}\.[0-9a-f]{{16}}\Z")
_LOCK = re.compile(
    rf"(?:{HEX_DIGEST}(?:\.make)?|template-{HEX_SHA256}(?:\.load)?|template-[a-z0-9][a-z0-9_.-]{{0,62}}\.load)\Z"
)
_SERVER = re.compile(rf"({HEX_SHA256})\.(lock|log|socket)\Z")
_CLOCK_STEP_NS = 2_000_000_000  # time resolution of the coarsest file systems
_WRITING_S = 3600  # a temporary file may be in use for that long


class _Content(NamedTuple):
    """The files of a digest: a disk with its index, an interrupted fetch, or a blob."""

    digest: str
    files: tuple[Path, ...]
    bytes: int
    used: float  # Unix time of the last use


def prune(store: Store, age_s: float, max_bytes: int | None, *, dry_run: bool) -> list[tuple[Path, int]]:
    """Remove content that no sandbox uses and that was not used for `age_s` seconds. Return the files and their bytes.

    With `max_bytes`, stop as soon as the store holds no more than that. Content in use is leased and never removed.

    Raises:
        RootdiskError: Nothing could be removed.
    """
    directory.sweep(store)
    snapshots.sweep(store)
    tracker = _Needed(store)
    needed = tracker.now()
    contents = sorted(_contents(store), key=lambda content: content.used)
    left = sum(content.bytes for content in contents)
    removed: list[tuple[Path, int]] = []
    failed: RootdiskError | None = None
    for content in contents:
        if _unused_s(content.used) < age_s or (max_bytes is not None and left <= max_bytes):
            continue
        if not _removable(content, needed):
            continue
        try:
            with store.removing(content.digest):
                # Check again: a sandbox may have been created and stopped meanwhile.
                sizes = [(path, path.lstat().st_blocks * 512) for path in _removable(content, tracker.now())]
                if not dry_run:
                    for path, _ in sizes:
                        path.unlink()
                    if sizes:
                        store.unmark(content.digest)
                removed += sizes
                left -= sum(size for _, size in sizes)
        except Busy:
            pass
        except RootdiskError as err:  # for example, no space for a lock: try the others
            failed = err
        except OSError as err:
            failed = RootdiskError(f"cannot remove {printable(err.filename)}: {err.strerror}")
    removed += _prune_templates(store, age_s, left, max_bytes, dry_run=dry_run)
    if not dry_run:
        _forget(store)
        for path in (store.root / "locks").iterdir():
            if _LOCK.match(path.name):
                remove_idle(path)
        _forget_servers(store)
        for path in (store.root / "damaged").iterdir():
            if _DIGEST.match(path.name) and not store.damage(path.name):
                store.unmark(path.name)  # a killed prune has removed the content only
    if failed is not None and not removed:
        raise failed
    return removed


def _prune_templates(
    store: Store, age_s: float, left: int, max_bytes: int | None, *, dry_run: bool
) -> list[tuple[Path, int]]:
    """Remove templates, which can be made again, and what killed makers have left. Sandboxes that run from one go on.

    `left` is how many bytes the store still holds besides them.
    """
    removed = []
    templates = sorted(saved.all_of(store), key=lambda template: template.used)
    left += sum(template.disk_bytes for template in templates)
    for template in templates:
        if _unused_s(template.used) < age_s or (max_bytes is not None and left <= max_bytes):
            continue
        size = template.disk_bytes if dry_run else saved.remove(template.folder)
        left -= size
        removed.append((template.folder, size))
    if not dry_run:
        saved.remove_left(store)
    return removed


class _Needed:
    """The digests that sandboxes and snapshots use. They are read again only if one was added or removed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = 0  # modification time of the directory before the last read
        self._needed: set[str] | None = None

    def now(self) -> set[str] | None:
        """Return the hex digests in use now, or None if unknown."""
        changed = max(folder.stat().st_mtime_ns for folder in (self._store.sandboxes, self._store.root / "snapshots"))
        if changed != self._changed:
            began = time.time_ns()
            needed = snapshots.needed_by_all(self._store)
            # A later change within the time resolution would not be noticed.
            self._changed = changed if began - changed > _CLOCK_STEP_NS else 0
            self._needed = needed
        return self._needed


def _unused_s(used: float) -> float:
    """Return for how long something was not used: 0 if that is still to come, as after the clock was set back."""
    return max(time.time() - used, 0.0)


def _removable(content: _Content, needed: set[str] | None) -> list[Path]:
    """Return the files that no sandbox uses. `needed` None means that their needs are unknown."""
    if needed is not None and content.digest in needed:
        return []
    removable = []
    for path in content.files:
        with contextlib.suppress(FileNotFoundError):
            is_old = time.time() - path.lstat().st_mtime > _WRITING_S
            if is_old if path.name.startswith(".") else needed is not None:
                removable.append(path)
    return removable


def _contents(store: Store) -> list[_Content]:
    by_digest: dict[str, list[Path]] = {}
    for folder, form in _FORMS.items():
        for path in (store.root / folder).iterdir():
            if name := form.match(path.name):
                by_digest.setdefault(name[1] or name[2], []).append(path)
    contents = []
    for digest, files in by_digest.items():
        with contextlib.suppress(FileNotFoundError):
            infos = [path.lstat() for path in files]
            blocks = sum(info.st_blocks * 512 for info in infos)
            # Remove a disk before its index: a disk must not be left without one.
            files.sort(key=lambda path: path.suffix != ".raw")
            contents.append(_Content(digest, tuple(files), blocks, max(info.st_mtime for info in infos)))
    return contents


def _forget(store: Store) -> None:
    """Remove names whose manifest is gone. An unreadable name stays: it may be of another version."""
    _forget_verdicts(store)
    for path in _files_of_names(store):
        with contextlib.suppress(FileNotFoundError):
            if _TEMPORARY.match(path.name):
                is_stale = time.time() - path.lstat().st_mtime > _WRITING_S
            else:
                name = read_name(path) if _NAME.match(path.name) else None
                is_stale = name is not None and not (store.root / "blobs" / name.manifest).exists()
            if is_stale:
                path.unlink()


def _files_of_names(store: Store) -> Iterator[Path]:
    for folder in ("names", "asked"):
        with contextlib.suppress(FileNotFoundError):
            yield from (store.root / folder).iterdir()


def _forget_servers(store: Store) -> None:
    """Remove what killed servers of disks have left."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted((store.root / "lazy").iterdir()):  # the lock is before the log and the socket
            if (match := _SERVER.match(path.name)) and match[2] == "lock":
                remove_idle(path)
            elif match and not path.with_suffix(".lock").exists():
                path.unlink(missing_ok=True)


def _forget_verdicts(store: Store) -> None:
    """Remove accepted signatures of manifests that are gone. Files of another version stay."""
    with contextlib.suppress(FileNotFoundError):
        for path in (store.root / "trust").iterdir():
            match = _VERDICT.match(path.name)
            if match and not (store.root / "blobs" / match[1]).exists() and not has_other_version(path, trust.VERSION):
                path.unlink(missing_ok=True)
