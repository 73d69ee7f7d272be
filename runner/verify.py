"""The store hashed again: every chunk of every disk, every blob. What is damaged is fetched again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runner.artifact import ArtifactConfig, ArtifactManifest, Chunk, ChunkIndex
from runner.errors import RootdiskError
from runner.files import data_runs
from runner.local import Name, pull, read_name
from runner.oci import Digest, Manifest, Platform
from runner.reference import parse_reference
from runner.repository import RegistryOptions
from runner.store import Store


class Damage(NamedTuple):
    """A file that does not hold what its name says."""

    path: Path
    digest: str  # hex
    what: str
    usable: bool = False  # whether its good parts may be used again


def verify(store: Store) -> tuple[int, list[Damage]]:
    """How many files were read, and which are damaged. Nothing is changed."""
    checked = 0
    damages = []
    for path in sorted((store.root / "blobs").iterdir()):
        if path.name.startswith("."):
            continue
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            checked += 1
            if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                damages.append(Damage(path, path.name, "is not what its digest names"))
    for path in sorted((store.root / "disks").glob("*.raw")):
        with contextlib.suppress(FileNotFoundError):
            checked += 1
            what = _wrong(path)
            if what:
                damages.append(Damage(path, path.stem, what, usable=what.startswith("the chunk")))
    return checked, damages


def _wrong(path: Path) -> str:
    """What is wrong with a disk; "" for nothing."""
    with path.open("rb") as file:
        try:
            index = ChunkIndex.parse(path.with_suffix(".chunks").read_bytes())
        except (FileNotFoundError, RootdiskError) as err:
            return f"its chunk index cannot be read: {err}"
        if index.disk_digest().hex != path.stem:
            return "its chunk index is another disk's"
        if os.fstat(file.fileno()).st_size != index.disk_size:
            return "its length is wrong"
        for chunk in index.chunks:
            if not chunk.zero and _sha256(file.fileno(), chunk) != chunk.sha256:
                return f"the chunk at {chunk.offset} is damaged"
        for start in _not_zero(file.fileno(), index):
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
    """Fetch it again from where it came; False, and the file removed, where the store does not know that.

    RootdiskError as of `pull`.
    """
    origin = _origin(store, damage.digest)
    if damage.usable:
        # What is right in it need not be fetched again: fetching takes it for one that was cut off.
        damage.path.chmod(0o600)
        os.replace(damage.path, damage.path.with_suffix(".partial"))
    else:
        damage.path.unlink(missing_ok=True)
    if origin is None:
        return False
    options = RegistryOptions(plain_http=origin.plain_http, ca_file=Path(origin.ca_file) if origin.ca_file else None)
    reference = parse_reference(origin.reference)._replace(tag="", digest=Digest("sha256", origin.manifest))
    pull(store, reference, options, Platform.parse(origin.platform)).release()
    return True


def _origin(store: Store, digest: str) -> Name | None:
    """Of which reference the file is a part."""
    for path in sorted((store.root / "names").iterdir()):
        name = read_name(path)
        with contextlib.suppress(OSError, RootdiskError):
            if name is not None and digest in _parts(store, name):
                return name
    return None


def _parts(store: Store, name: Name) -> set[str]:
    roles = ArtifactManifest.of(Manifest.parse((store.root / "blobs" / name.manifest).read_bytes()))
    found = {name.manifest, *(role.digest.hex for role in (roles.config, roles.kernel, roles.initramfs) if role)}
    with contextlib.suppress(OSError, RootdiskError):
        config = ArtifactConfig.parse((store.root / "blobs" / roles.config.digest.hex).read_bytes())
        found.add(config.disk_digest.hex)
    return found
