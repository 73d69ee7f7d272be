"""Check the store: hash every chunk of every disk and every blob. Mark damaged content, and fetch it again."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import INDEX_MAGIC, INDEX_MAX_BYTES, Chunk, ChunkIndex
from rootdisk.cli.progress import Progress
from rootdisk.durable import data_runs, open_file, read_file
from rootdisk.errors import Busy, RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.parsing.digests import HEX_DIGEST, HEX_SHA256
from rootdisk.system.debug import debug
from runner.store.names import Name, files_of, read_name
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Damaged, Store, read_index

_BLOB = re.compile(rf"{HEX_DIGEST}\Z")
_DISK = re.compile(rf"{HEX_SHA256}\.raw\Z")


class Damage(NamedTuple):
    """A file whose content does not match its name."""

    path: Path
    digest: str  # hex
    what: str


class Report(NamedTuple):
    """The result of checking a store."""

    checked: int  # files
    damages: list[Damage]
    other_versions: list[Path]  # disks that another version of rootdisk has fetched: not checked


def verify(store: Store) -> Report:
    """Check all files. Damaged ones are marked, so nothing boots from them."""
    checked = 0
    damages: list[Damage] = []
    other_versions: list[Path] = []
    for path in _files(store):
        digest = path.stem if path.suffix else path.name
        try:
            fd = open_file(path)
        except FileNotFoundError:
            continue
        except OSError as err:
            what = f"it cannot be read: {err.strerror}"
            if _mark(store, digest, what, path, None):
                damages.append(Damage(path, digest, what))
            continue
        checked += 1
        try:
            if path.suffix and _has_other_version(path):
                other_versions.append(path)
                checked -= 1
                continue
            what = _wrong(path, fd)
            if _mark(store, digest, what, path, os.fstat(fd)):
                damages.append(Damage(path, digest, what))
        finally:
            os.close(fd)
    return Report(checked, damages, other_versions)


def check(store: Store, artifact: StoredArtifact, progress: Progress | None = None) -> None:
    """Hash the files of one artifact: its disk in the order of the chunk index, and what boots it. A damaged one is marked.

    Raises:
        Damaged: A file is not what its digest says.
    """
    for path in (artifact.kernel, artifact.initramfs, artifact.verity, artifact.vmlinux, artifact.disk):
        if path is None:
            continue
        digest = path.stem if path.suffix else path.name
        try:
            fd = open_file(path)
        except OSError as err:
            raise Damaged(digest, f"it cannot be read: {err.strerror}") from err
        try:
            what = _wrong(path, fd, progress)
            if what:
                _mark(store, digest, what, path, os.fstat(fd))
                raise Damaged(digest, what)
        finally:
            os.close(fd)


def _files(store: Store) -> Iterator[Path]:
    """Yield the blobs and disks with names of this version."""
    for path in sorted((store.root / "blobs").iterdir()):
        if _BLOB.match(path.name):
            yield path
    for path in sorted((store.root / "disks").iterdir()):
        if _DISK.match(path.name):
            yield path


def _mark(store: Store, digest: str, what: str, path: Path, read: os.stat_result | None) -> bool:
    """Mark or unmark the content of a hex digest. Return whether `path` is damaged and still the file that was read."""
    try:
        # A process that repairs it will remove the mark itself.
        with store.unless_made(digest):
            if read is not None and not os.path.samestat(read, os.lstat(path)):
                return False
            if what:
                store.mark(digest, what)
            else:
                store.unmark(digest)
    except FileNotFoundError:
        return False
    except Busy:
        pass
    except (OSError, RootdiskError) as err:  # for example a full disk; the damage is reported anyway
        debug(f"{path}: cannot be marked: {err}")
    return bool(what)


def _wrong(path: Path, fd: int, progress: Progress | None = None) -> str:
    """Return what is wrong with the blob or disk `path`, open at `fd`, or ""."""
    try:
        if path.suffix:
            return _wrong_disk(path, fd, progress)
        algorithm = "sha256" if len(path.name) == 64 else "sha512"
        with open(fd, "rb", closefd=False) as file:
            is_intact = hashlib.file_digest(file, algorithm).hexdigest() == path.name
        return "" if is_intact else "its content does not match its digest"
    except OSError as err:  # a bad sector
        return f"it cannot be read: {err.strerror}"


def _wrong_disk(path: Path, fd: int, progress: Progress | None = None) -> str:
    try:
        index = read_index(path)
    except (OSError, ValueError, RootdiskError) as err:
        return f"its chunk index cannot be read: {err}"
    if index.disk_digest().hex != path.stem:
        return "its chunk index belongs to another disk"
    if os.fstat(fd).st_size != index.disk_size:
        return "its length is wrong"
    data = [chunk for chunk in index.chunks if not chunk.zero]
    done, total = 0, sum(chunk.length for chunk in data)
    for chunk in data:
        if _sha256(fd, chunk) != chunk.sha256:
            return f"the chunk at {chunk.offset} is damaged"
        done += chunk.length
        if progress is not None:
            progress(done, total)
    for start in _not_zero(fd, index):
        return f"there is data at {start}, which should be a hole"
    return ""


def _has_other_version(disk: Path) -> bool:
    """Return whether the chunk index of a disk has another version: a newer release has fetched it."""
    try:
        magic = read_file(disk.with_suffix(".chunks"), INDEX_MAX_BYTES)[: len(INDEX_MAGIC)]
    except (OSError, ValueError):
        return False
    return magic.startswith(INDEX_MAGIC[:-1]) and magic != INDEX_MAGIC


def _sha256(fd: int, chunk: Chunk) -> bytes:
    return hashlib.sha256(os.pread(fd, chunk.length, chunk.offset)).digest()


def _not_zero(fd: int, index: ChunkIndex) -> Iterator[int]:
    """Yield offsets of nonzero data inside zero chunks."""
    zeros = iter([chunk for chunk in index.chunks if chunk.zero])
    chunk = next(zeros, None)
    for start, end in data_runs(fd):
        while chunk is not None and chunk.end <= start:
            chunk = next(zeros, None)
        while chunk is not None and chunk.offset < end:
            low, high = max(start, chunk.offset), min(end, chunk.end)
            for at in range(low, high, 1 << 20):
                if any(os.pread(fd, min(1 << 20, high - at), at)):
                    yield at
            if chunk.end > end:
                break
            chunk = next(zeros, None)


def repair(store: Store, damage: Damage) -> bool:
    """Fetch a damaged file again. Return False if its origin is unknown.

    The damaged file and its mark stay until an intact file replaces it: running sandboxes may use it, and its good chunks
    need not be fetched.

    Raises:
        RootdiskError: As for `pull`.
    """
    origin = _origin(store, damage.digest)
    if origin is None:
        return False
    reference = parse_reference(origin.reference)._replace(tag="", digest=Digest("sha256", origin.manifest))
    pull(store, reference, origin.options, Platform.parse(origin.platform), repair=True).release()
    return True


def _origin(store: Store, digest: str) -> Name | None:
    """Return the name of an artifact that the content of a hex digest belongs to."""
    for path in sorted((store.root / "names").iterdir()):
        name = read_name(path)
        if name is not None and digest in files_of(store, name.manifest):
            return name
    return None
