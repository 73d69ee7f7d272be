"""List the artifacts of a store, with or without a name, also those whose disk is not complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.artifact.format import ArtifactManifest
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import MANIFEST_MAX_BYTES
from runner.store.boot_blobs import boot_blobs
from runner.store.names import asked, read_name
from runner.store.store import Store

_UNNAMED_MAX_BYTES = 1 << 20  # only blobs up to this size are searched for manifests without a name


class Image(NamedTuple):
    """An artifact in the store. Without a name its reference is ""."""

    reference: str
    platform: str
    digest: str  # hex, of the manifest
    disk: str  # hex, of the disk
    disk_size: int
    is_complete: bool  # False: it is being fetched, or that was interrupted
    stored_bytes: int  # space that disk, kernel and initramfs take on this host
    used: float  # Unix time of the last use
    files: tuple[str, ...]  # hex digests of everything that belongs to it
    name: Path | None  # its file in names/; in asked/ if it is being fetched and has no name yet

    def untag(self, store: Store) -> None:
        """Remove its name, also if it gets it just now."""
        if self.name is not None:
            for folder in ("asked", "names"):
                path = store.root / folder / self.name.name
                name = read_name(path)
                if name is not None and name.manifest == self.digest:
                    path.unlink(missing_ok=True)

    def to_json(self) -> dict[str, Any]:
        """Return the value for `images --json`."""
        return {
            "reference": self.reference,
            "platform": self.platform,
            "digest": f"sha256:{self.digest}",
            "disk": f"sha256:{self.disk}",
            "disk_size": self.disk_size,
            "complete": self.is_complete,
            "stored_bytes": self.stored_bytes,
            "used": self.used,
        }


def images(store: Store) -> list[Image]:
    """Return every artifact whose disk is in the store, if only in part, sorted by name; those without a name come last."""
    named: list[Image] = []
    for path in sorted((store.root / "names").iterdir()):
        name = read_name(path)
        image = _artifact(store, name.manifest) if name is not None else None
        if name is not None and image is not None:
            named.append(image._replace(reference=name.reference, platform=name.platform, name=path))
    there = {(image.reference, image.platform, image.digest) for image in named}
    for path, name in asked(store):
        image = _artifact(store, name.manifest)
        if image is not None and (name.reference, name.platform, image.digest) not in there:
            image = image._replace(reference=name.reference, platform=name.platform, name=path)
            named.append(image._replace(is_complete=False))
    known = {image.digest for image in named}
    unnamed = [image for digest in _small_blobs(store) if digest not in known and (image := _artifact(store, digest))]
    return sorted(named, key=lambda image: (image.reference, image.platform)) + unnamed


def _small_blobs(store: Store) -> Iterator[str]:
    for path in sorted((store.root / "blobs").iterdir()):
        with contextlib.suppress(OSError):
            if len(path.name) == 64 and path.lstat().st_size <= _UNNAMED_MAX_BYTES:
                yield path.name


def _artifact(store: Store, digest: str) -> Image | None:
    """Return the artifact whose manifest is the blob `digest`, or None if it is not one or has no disk here."""
    try:
        roles = ArtifactManifest.parse(store.read_blob(digest, MANIFEST_MAX_BYTES))
        config = store.read_config(roles.config.digest.hex)
        disk = store.disk(config.disk_digest)
        is_complete = disk.exists()
        info = (disk if is_complete else store.partial(config.disk_digest)).lstat()
        boot = [blob.content.digest for blob in boot_blobs(roles, config)]
    except (OSError, RootdiskError, ValueError):
        return None
    stored = info.st_blocks * 512
    for blob in boot:
        with contextlib.suppress(OSError):
            stored += os.lstat(store.blob_path(blob)).st_blocks * 512
    return Image(
        "",
        str(config.platform),
        digest,
        config.disk_digest.hex,
        config.disk_size,
        is_complete,
        stored,
        info.st_mtime,
        (config.disk_digest.hex, roles.config.digest.hex, digest, *(blob.hex for blob in boot)),
        None,
    )
