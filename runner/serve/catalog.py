"""The manifests and blobs that a store can serve, by repository and digest.

A repository has what its own names lead to, and nothing else of the store: who may read one must not get another's blobs. Tags are not
served, because the store knows only what a tag meant some time ago.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import ArtifactManifest
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import MANIFEST_MAX_BYTES, OCI_MANIFEST, Digest
from rootdisk.oci.reference import parse_reference
from runner.serve.blobs import Blob, CompressedBlob, DiskBlob, FileBlob
from runner.store.boot_blobs import boot_blobs
from runner.store.names import Name, read_name
from runner.store.store import Store


class Repository(NamedTuple):
    """The artifacts of one repository that are in the store."""

    manifests: dict[Digest, Blob]
    blobs: dict[Digest, Blob]


class Catalog:
    """Finds repositories. Threads may share it; names that are added are seen at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._read: dict[str, Repository] = {}
        self._known: dict[tuple[str, str], Repository] = {}
        self._seen_ns = -1

    def find(self, name: str, registry: str = "") -> Repository | None:
        """Find the repository `name`, REPOSITORY or REGISTRY/REPOSITORY; with `registry`, that registry's."""
        with self._lock:
            self._look()
            matches = [
                repository
                for (place, path), repository in self._known.items()
                if (name == path and registry in ("", place)) or name == f"{place}/{path}"
            ]
            return _joined(matches)

    def blobs(self) -> list[Blob]:
        """Return every manifest and blob of the store that is served."""
        with self._lock:
            self._look()
            return [
                blob for found in self._known.values() for blob in (*found.manifests.values(), *found.blobs.values())
            ]

    def _look(self) -> None:
        """Read the names again if some were added."""
        seen_ns = os.stat(self._store.root / "names").st_mtime_ns
        if seen_ns != self._seen_ns:
            self._known, self._seen_ns = self._all(), seen_ns

    def _all(self) -> dict[tuple[str, str], Repository]:
        known: dict[tuple[str, str], Repository] = {}
        for path in (self._store.root / "names").iterdir():
            name = read_name(path)
            if name is None:
                continue
            with contextlib.suppress(RootdiskError, OSError, ValueError):
                reference = parse_reference(name.reference, foreign=True)
                if reference.kind == "registry":
                    repository = known.setdefault((reference.registry, reference.repository), Repository({}, {}))
                    self._add(repository, name)
        return known

    def _add(self, repository: Repository, name: Name) -> None:
        store = self._store
        raw = store.read_blob(name.manifest, MANIFEST_MAX_BYTES)
        roles = ArtifactManifest.parse(raw)
        config = store.read_config(roles.config.digest.hex)
        found: dict[Digest, Blob] = {
            roles.config.digest: FileBlob(store.blob_path(roles.config.digest), roles.config),
            roles.chunks.digest: FileBlob(store.index(config.disk_digest), roles.chunks),
        }
        for blob in boot_blobs(roles, config):
            path = store.blob_path(blob.content.digest)
            found[blob.descriptor.digest] = (
                CompressedBlob(path, blob.descriptor, blob.role == "verity")
                if blob.what
                else FileBlob(path, blob.descriptor)
            )
        disk, start = store.disk(config.disk_digest), 0
        for part in roles.disk:
            found[part.digest] = DiskBlob(disk, part, start, is_last=part is roles.disk[-1])
            start += part.size
        repository.blobs.update(found)
        digest = Digest("sha256" if len(name.manifest) == 64 else "sha512", name.manifest)
        media_type = roles.config._replace(media_type=OCI_MANIFEST, digest=digest, size=len(raw))
        repository.manifests[digest] = FileBlob(Path(store.root / "blobs" / name.manifest), media_type)


def _joined(matches: list[Repository]) -> Repository | None:
    """Return several repositories of one name, of different registries, as one."""
    if len(matches) < 2:
        return matches[0] if matches else None
    joined = Repository({}, {})
    for repository in matches:
        joined.manifests.update(repository.manifests)
        joined.blobs.update(repository.blobs)
    return joined
