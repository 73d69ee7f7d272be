"""A published artifact, opened: the one way from a reference to manifest, config, chunk index and disk.

    with open_artifact(reference, platform, options) as artifact:
        artifact.config, artifact.index, artifact.disk()

Everything is bounded before it is read and verified by its digest. What is not asked for is not fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rootdisk.artifact.format import (
    ARTIFACT_TYPE,
    CONFIG_MAX_BYTES,
    INDEX_MAX_BYTES,
    ArtifactConfig,
    ArtifactManifest,
    ChunkIndex,
    NotAnArtifact,
)
from rootdisk.errors import BadInput, DigestMismatch
from rootdisk.oci.documents import Descriptor, Digest, Manifest, Platform, parse_json
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import Joined, RegistryOptions, Repository, read_blob, resolve_chain
from rootdisk.places import open_mirrored

if TYPE_CHECKING:
    from rootdisk.artifact.disk import FramedDisk


class PublishedArtifact:
    """An artifact in a repository. Its config and chunk index are fetched when they are first looked at."""

    def __init__(
        self, repository: Repository, descriptor: Descriptor, raw: bytes, indexes: tuple[Digest, ...] = ()
    ) -> None:
        """Parse the manifest `raw`, which `descriptor` names and whose digest is checked; BadInput if it is not an artifact's."""
        self.repository, self.descriptor, self.raw = repository, descriptor, raw
        self.indexes = indexes  # that led to it, the outermost first
        self.roles = ArtifactManifest.parse(raw)

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest's JSON value."""
        return parse_json(self.raw, "artifact manifest")

    @cached_property
    def config(self) -> ArtifactConfig:
        """The config.

        Raises:
            BadInput: it is too large, or not a config.
            DigestMismatch: its bytes are others than the manifest says.
        """
        return ArtifactConfig.parse(read_blob(self.repository, self.roles.config, CONFIG_MAX_BYTES))

    @cached_property
    def index(self) -> ChunkIndex:
        """The chunk index, which belongs to the config's disk and to the manifest's blobs.

        Raises:
            BadInput: it is too large, or not a chunk index.
            DigestMismatch: its bytes are others than the manifest says, or it is another disk's.
        """
        return checked_index(index_bytes(self.repository, self.roles), self.roles, self.config)

    def joined(self) -> Joined:
        """The disk's blobs as one, not verified."""
        return Joined(self.repository, self.roles.disk)

    def disk(self) -> FramedDisk:
        """The disk's bytes: only frames that are read are fetched, and each is verified."""
        from rootdisk.artifact.disk import FramedDisk  # zstandard takes a while to load

        return FramedDisk(self.joined(), self.index)


@contextlib.contextmanager
def open_artifact(
    reference: Reference, platform: Platform, options: RegistryOptions | None = None
) -> Iterator[PublishedArtifact]:
    """Open the artifact that `reference` names, of an index the one for `platform`; its repository is closed at the end.

    Raises:
        BadInput: the reference names something else, or nothing for this platform.
        RegistryError: the registry cannot be asked, or says no.
    """
    with contextlib.closing(open_mirrored(reference, options)) as repository:
        yield read_artifact(repository, reference, platform)


def read_artifact(repository: Repository, reference: Reference, platform: Platform) -> PublishedArtifact:
    """Open the artifact that `reference` names in the open `repository`; errors as of `open_artifact`."""
    kinds: list[bool] = []

    def ask(_: Descriptor, raw: bytes) -> Platform | None:
        """Read the platform of an entry without one from its config; None if it is not an artifact."""
        manifest = Manifest.parse(raw)
        kinds.append(manifest.artifact_type == ARTIFACT_TYPE)
        if not kinds[-1]:
            return None
        return ArtifactConfig.parse(
            read_blob(repository, ArtifactManifest.of(manifest).config, CONFIG_MAX_BYTES)
        ).platform

    try:
        *indexes, found = resolve_chain(repository, reference, platform, ask)
    except BadInput as err:
        if kinds and not any(kinds):
            raise NotAnArtifact(err.message, err.hint) from err
        raise
    try:
        return PublishedArtifact(repository, *found, tuple(index.digest for index, _ in indexes))
    except NotAnArtifact as err:
        raise NotAnArtifact(f"{reference}: {err.message}", err.hint) from err


def index_bytes(repository: Repository, roles: ArtifactManifest) -> bytes:
    """Fetch the chunk index, for `checked_index`.

    Raises:
        BadInput: it is too large.
        DigestMismatch: its bytes are others than the manifest says.
    """
    return read_blob(repository, roles.chunks, INDEX_MAX_BYTES)


def checked_index(raw: bytes, roles: ArtifactManifest, config: ArtifactConfig) -> ChunkIndex:
    """Parse the chunk index `raw`, which belongs to the disk of `config` and to the blobs of `roles`.

    Raises:
        BadInput: it is not a chunk index.
        DigestMismatch: it is another disk's.
    """
    index = ChunkIndex.parse(raw)
    if index.disk_digest() != config.disk_digest or index.disk_size != config.disk_size:
        raise DigestMismatch("the chunk index is not that of the disk in the config", "the artifact is damaged")
    if index.blob_end > roles.disk_bytes:
        raise DigestMismatch("the chunk index reaches past the disk's blobs", "the artifact is damaged")
    return index
