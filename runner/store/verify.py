"""The store hashed again: every chunk of every disk, every blob. What is damaged is marked, and fetched again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import Chunk, ChunkIndex
from rootdisk.durable import data_runs, open_file
from rootdisk.errors import Busy, RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.system.debug import debug
from runner.store.names import Name, files_of, read_name
from runner.store.pull import pull
from runner.store.store import Store, read_index

_BLOB = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?\Z")
_DISK = re.compile(r"[0-9a-f]{64}\.raw\Z")


class Damage(NamedTuple):
    """A file that does not hold what its name says."""

    path: Path
    digest: str  # hex
    what: str


def verify(store: Store) -> tuple[int, list[Damage]]:
    """How many files were read, and which are damaged. These are marked: nothing boots from them before they are whole."""
    checked = 0
    damages = []
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
            what = _wrong(path, fd)
            if _mark(store, digest, what, path, os.fstat(fd)):
                damages.append(Damage(path, digest, what))
        finally:
            os.close(fd)
    return checked, damages


def _files(store: Store) -> Iterator[Path]:
    """The blobs and disks whose names are this version's."""
    for path in sorted((store.root / "blobs").iterdir()):
        if _BLOB.match(path.name):
            yield path
    for path in sorted((store.root / "disks").iterdir()):
        if _DISK.match(path.name):
            yield path


def _mark(store: Store, digest: str, what: str, path: Path, read: os.stat_result | None) -> bool:
    """Whether `path` is damaged, and still the file that was read; its mark says so from now on, or is gone."""
    try:
        # Who makes it again has marked it before, and removes the mark.
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
    except (OSError, RootdiskError) as err:  # as on a full disk: it is reported all the same
        debug(f"{path}: cannot be marked: {err}")
    return bool(what)


def _wrong(path: Path, fd: int) -> str:
    """What is wrong with the blob or disk at `path`, open at `fd`; "" for nothing."""
    try:
        if path.suffix:
            return _wrong_disk(path, fd)
        algorithm = "sha256" if len(path.name) == 64 else "sha512"
        with open(fd, "rb", closefd=False) as file:
            same = hashlib.file_digest(file, algorithm).hexdigest() == path.name
        return "" if same else "is not what its digest names"
    except OSError as err:  # a bad sector
        return f"it cannot be read: {err.strerror}"


def _wrong_disk(path: Path, fd: int) -> str:
    try:
        index = read_index(path)
    except (OSError, ValueError, RootdiskError) as err:
        return f"its chunk index cannot be read: {err}"
    if index.disk_digest().hex != path.stem:
        return "its chunk index is another disk's"
    if os.fstat(fd).st_size != index.disk_size:
        return "its length is wrong"
    for chunk in index.chunks:
        if not chunk.zero and _sha256(fd, chunk) != chunk.sha256:
            return f"the chunk at {chunk.offset} is damaged"
    for start in _not_zero(fd, index):
        return f"there is data at {start}, where there should be none"
    return ""


def _sha256(fd: int, chunk: Chunk) -> bytes:
    return hashlib.sha256(os.pread(fd, chunk.length, chunk.offset)).digest()


def _not_zero(fd: int, index: ChunkIndex) -> Iterator[int]:
    """Where zero chunks hold something else."""
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
    """Fetch it again from where it came; False if the store does not know that.

    RootdiskError as of `pull`. The damaged file stays, and marked, until a whole one takes its place: sandboxes that run
    with it keep it, and its good chunks need not be fetched.
    """
    origin = _origin(store, damage.digest)
    if origin is None:
        return False
    options = RegistryOptions(plain_http=origin.plain_http, ca_file=Path(origin.ca_file) if origin.ca_file else None)
    reference = parse_reference(origin.reference)._replace(tag="", digest=Digest("sha256", origin.manifest))
    pull(store, reference, options, Platform.parse(origin.platform), repair=True).release()
    return True


def _origin(store: Store, digest: str) -> Name | None:
    """Of which reference the file is a part."""
    for path in sorted((store.root / "names").iterdir()):
        name = read_name(path)
        with contextlib.suppress(OSError, ValueError, RootdiskError):
            if name is not None and digest in files_of(store, name):
                return name
    return None
