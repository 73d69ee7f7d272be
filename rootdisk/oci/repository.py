"""Where images and artifacts are read from: one repository of one registry, or one OCI layout directory.

Nothing here trusts the other side: manifests come back checked against their digest and bounded, small blobs through
`read_blob`; who reads ranges checks what they hold. requests, which takes a while to load, is loaded when a registry is
really asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from rootdisk.errors import BadInput, DigestMismatch, Unsupported
from rootdisk.oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Platform,
    parse_json,
)
from rootdisk.oci.reference import Reference

INDEX_MAX_DEPTH = 3  # an index may list indexes; nobody nests them deeper


class RegistryOptions(NamedTuple):
    """How to speak to a registry. Times are seconds; `give_up_s` is how long to try without any progress."""

    plain_http: bool = False
    ca_file: Path | None = None  # PEM, trusted beside the system's own
    connect_timeout_s: float = 10
    read_timeout_s: float = 60
    give_up_s: float = 120


class Repository(Protocol):
    """Read access to one place that holds manifests and blobs. Safe to use from several threads."""

    ranges_ignored: (
        bool  # a part of a blob was asked for, and the whole came: parts are better not asked for one by one
    )

    def resolve(self, name: str | Digest) -> Descriptor:
        """The manifest or index that a tag or digest names; "" is the only one there is, where that is clear."""

    def manifest(self, wanted: Descriptor | Digest) -> bytes:
        """A manifest's or index's raw bytes, digest checked, at most MANIFEST_MAX_BYTES."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Exactly the bytes [start, end) of a blob, in pieces, NOT verified; `end` None means its size."""

    def interrupt(self) -> None:
        """End what other threads are waiting for, with an error there; nothing can be read afterwards."""

    def close(self) -> None: ...


class Joined(NamedTuple):
    """Blobs of a repository, one after the other, as if they were one."""

    repository: Repository
    parts: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Exactly the bytes [start, end), in pieces, NOT verified."""
        first = 0
        for part in self.parts:
            low, high = max(start - first, 0), min(end - first, part.size)
            if low < high:
                yield from self.repository.blob(part, low, high)
            first += part.size


def check_range(descriptor: Descriptor, start: int, end: int | None) -> int:
    """The range's end, checked against the blob's size."""
    stop = descriptor.size if end is None else end
    if not 0 <= start <= stop <= descriptor.size:
        raise BadInput(f"blob {descriptor.digest.short}: bytes {start} to {stop} of {descriptor.size}")
    return stop


def read_blob(repository: Repository, descriptor: Descriptor, max_bytes: int) -> bytes:
    """A whole small blob in memory, size and digest checked."""
    return b"".join(blob_pieces(repository, descriptor, max_bytes))


def blob_pieces(repository: Repository, descriptor: Descriptor, max_bytes: int) -> Iterator[bytes]:
    """A whole blob in pieces; DigestMismatch at their end if they are not its bytes."""
    if descriptor.size > max_bytes:
        raise BadInput(f"blob {descriptor.digest.short}: {descriptor.size} bytes are more than the {max_bytes} allowed")
    return verified(repository.blob(descriptor), descriptor)


def verified(pieces: Iterator[bytes], descriptor: Descriptor) -> Iterator[bytes]:
    """The same pieces; DigestMismatch at the end, or as soon as they are too many, if they are not the blob's."""
    digest = hashlib.new(descriptor.digest.algorithm)
    count = 0
    for piece in pieces:
        count += len(piece)
        if count > descriptor.size:
            break
        digest.update(piece)
        yield piece
    if count != descriptor.size or digest.hexdigest() != descriptor.digest.hex:
        got = f"{digest.hexdigest()[:12]} in {count} bytes" if count <= descriptor.size else "more bytes"
        raise DigestMismatch(
            f"blob {descriptor.digest}: got {got}, expected {descriptor.size} bytes",
            "fetch it again; the copy is damaged",
        )


def check_manifest(raw: bytes, digest: Digest, where: str) -> bytes:
    """`raw`, if it is what `digest` names."""
    got = hashlib.new(digest.algorithm, raw).hexdigest()
    if got != digest.hex:
        raise DigestMismatch(f"{where}: manifest {digest}: got {digest.algorithm}:{got}", "fetch it again")
    return raw


def describe_manifest(raw: bytes, digest: Digest, where: str, content_type: str = "") -> Descriptor:
    """The descriptor of a manifest known by its bytes: its own mediaType, else the server's, else by what it lists.

    A document that could be read as two kinds is refused, so that nobody reads it as the other (CVE-2021-41190).
    """
    value = parse_json(raw, f"{where}: manifest {digest.short}")
    if "manifests" in value and "layers" in value:
        raise BadInput(f"{where}: manifest {digest} is both an index and an image", "the image is damaged or hostile")
    media_type = value.get("mediaType")
    if not media_type and content_type in (*MANIFEST_TYPES, *INDEX_TYPES):
        media_type = content_type
    if not media_type and value.get("schemaVersion") == 2:
        media_type = OCI_INDEX if "manifests" in value else OCI_MANIFEST
    artifact_type = value.get("artifactType")
    return Descriptor(str(media_type or content_type), digest, len(raw), artifact_type=str(artifact_type or ""))


def resolve_manifest(repository: Repository, reference: Reference, platform: Platform) -> tuple[Descriptor, bytes]:
    """The image manifest that `reference` means on exactly `platform`: its descriptor and raw bytes.

    An index is followed by Index.choose. BadInput where it offers no such platform; Unsupported for other documents.
    """
    found = repository.resolve(reference.name)
    for _ in range(INDEX_MAX_DEPTH):
        raw = repository.manifest(found)
        if found.media_type in MANIFEST_TYPES:
            return found, raw
        if found.media_type not in INDEX_TYPES:
            schema_1 = found.media_type.startswith("application/vnd.docker.distribution.manifest.v1")
            what = "a Docker schema 1 manifest" if schema_1 else f"a manifest of type {found.media_type!r:.120}"
            raise Unsupported(
                f"{reference}: {what}", "only OCI and Docker schema 2 are read; push it with a newer tool"
            )
        try:
            found = Index.parse(raw).choose(platform)
        except BadInput as err:
            raise BadInput(f"{reference}: {err.message}", err.hint) from err
    raise BadInput(f"{reference}: indexes are nested more than {INDEX_MAX_DEPTH} deep")
