"""Read access to images and artifacts: the protocol of registry repositories and OCI layouts.

The other side is not trusted. Manifests are bounded and checked against their digest, and so are blobs from `read_blob`.
Code that reads ranges must check them itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from rootdisk.errors import BadInput, DigestMismatch, Unsupported
from rootdisk.oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    UNLISTED_MAX_COUNT,
    Descriptor,
    Digest,
    Index,
    Platform,
    parse_json,
)
from rootdisk.oci.reference import Reference

INDEX_MAX_DEPTH = 3  # an index may list indexes; deeper nesting is not in use


class SeveralImages(BadInput):
    """`candidates` are entries of an index.json, one for each platform: it is an image's index itself."""

    def __init__(self, message: str, hint: str, candidates: tuple[Descriptor, ...]) -> None:
        super().__init__(message, hint)
        self.candidates = candidates


class RegistryOptions(NamedTuple):
    """Options for a registry. Times are in seconds; `give_up_s` limits retries without progress."""

    plain_http: bool = False
    ca_file: Path | None = None  # PEM; trusted in addition to the certificates of the system
    connect_timeout_s: float = 10
    read_timeout_s: float = 60
    read_min_bytes: int = 4 << 10  # in each such time, or a transfer is too slow
    give_up_s: float = 120
    verify_tls: bool = True  # False only for what registries.conf calls insecure
    spare_connections: int = 0  # opened with the first one, for requests that will be sent at once


class Repository(Protocol):
    """Read access to one place that holds manifests and blobs. Safe to use from several threads."""

    @property
    def serves_ranges(self) -> bool | None:
        """Return whether parts of blobs can be read. False: a server has answered with the complete blob. None: not known yet."""

    def resolve(self, name: str | Digest) -> Descriptor:
        """Return the manifest or index that a tag or digest names; "" means the only one, if there is only one."""

    def current(self, name: str | Digest) -> Digest | None:
        """Find which manifest or index a tag or digest names now; None if there is none. It is not verified."""

    def manifest(self, wanted: Descriptor | Digest) -> bytes:
        """Return a manifest or index as raw bytes: at most MANIFEST_MAX_BYTES, digest checked."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield exactly the bytes [start, end) of a blob, in pieces, NOT verified. `end` None means the end of the blob."""

    def referrers(self, subject: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """List the manifests that are attached to `subject`, of one type if `artifact_type` is given.

        Raises:
            BadInput: The list is malformed or longer than REFERRERS_MAX.
        """

    def interrupt(self) -> None:
        """Abort reads in other threads; they raise errors. Nothing can be read afterwards."""

    def close(self) -> None:
        """Release files and connections."""


@runtime_checkable
class Several(Protocol):
    """A repository that can be read at several places."""

    def blame(self, descriptor: Descriptor) -> bool:
        """Never ask the place again that has sent a blob last: it was something else. Return whether others can be asked."""


def blame(repository: Repository, descriptor: Descriptor) -> bool:
    """Report that the content of a blob was wrong. Return whether another place would be asked next."""
    return isinstance(repository, Several) and repository.blame(descriptor)


class Joined(NamedTuple):
    """Several blobs of a repository, read as one."""

    repository: Repository
    parts: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """The size of all parts, in bytes."""
        return sum(part.size for part in self.parts)

    @property
    def ends(self) -> tuple[int, ...]:
        """The byte at which each part ends."""
        return tuple(itertools.accumulate(part.size for part in self.parts))

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield exactly the bytes [start, end), in pieces, NOT verified."""
        first = 0
        for part in self.parts:
            low, high = max(start - first, 0), min(end - first, part.size)
            if low < high:
                yield from self.repository.blob(part, low, high)
            first += part.size

    def close(self) -> None:
        """Close the repository."""
        self.repository.close()

    def blame(self, start: int, end: int) -> bool:
        """Report that [start, end) was wrong. Return whether another place would be asked next."""
        first = 0
        blamed = []
        for part in self.parts:
            if first < end and start < first + part.size:
                blamed.append(blame(self.repository, part))
            first += part.size
        return any(blamed)


def check_range(descriptor: Descriptor, start: int, end: int | None) -> int:
    """Return the end of a range; None means the size of the blob.

    Raises:
        BadInput: The range is not inside the blob.
    """
    stop = descriptor.size if end is None else end
    if not 0 <= start <= stop <= descriptor.size:
        raise BadInput(f"blob {descriptor.digest.short}: bytes {start} to {stop} of {descriptor.size}")
    return stop


def read_blob(repository: Repository, descriptor: Descriptor, max_bytes: int) -> bytes:
    """Read a complete blob into memory; size and digest are checked.

    Raises:
        BadInput: The blob is larger than `max_bytes`.
        DigestMismatch: The content is not that of the digest.
    """
    while True:
        try:
            return b"".join(blob_pieces(repository, descriptor, max_bytes))
        except DigestMismatch:
            if not blame(repository, descriptor):
                raise


def checked_blob(repository: Repository, descriptor: Descriptor) -> Iterator[bytes]:
    """Yield a complete blob in pieces for a reader that cannot start again.

    With mirrors it is kept in a temporary file and verified first, so that another place can be asked. Otherwise it is not
    verified.
    """
    if not isinstance(repository, Several):
        yield from repository.blob(descriptor)
        return
    import tempfile  # seldom needed

    with tempfile.TemporaryFile() as file:
        while True:
            try:
                for piece in verified(repository.blob(descriptor), descriptor):
                    file.write(piece)
                break
            except DigestMismatch:
                if not blame(repository, descriptor):
                    raise
                file.seek(0)
                file.truncate()
        file.seek(0)
        while piece := file.read(1 << 20):
            yield piece


def blob_pieces(
    repository: Repository,
    descriptor: Descriptor,
    max_bytes: int,
    read: Callable[[Descriptor], Iterator[bytes]] | None = None,
) -> Iterator[bytes]:
    """Yield a complete blob in pieces. Errors are those of `read_blob`; a mismatch is raised after the last piece.

    `read` yields its bytes, not verified; it is the method of the repository if missing.
    """
    if descriptor.size > max_bytes:
        raise BadInput(f"blob {descriptor.digest.short}: {descriptor.size} bytes are more than the {max_bytes} allowed")
    return verified((read or repository.blob)(descriptor), descriptor)


def verified(pieces: Iterator[bytes], descriptor: Descriptor) -> Iterator[bytes]:
    """Yield `pieces` unchanged and check them.

    Raises:
        DigestMismatch: At the end, if size or digest differ; earlier, if there are too many bytes.
    """
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
            "fetch it again: this copy is damaged",
        )


def check_manifest(raw: bytes, digest: Digest, where: str) -> bytes:
    """Return `raw` if its digest is `digest`.

    Raises:
        DigestMismatch: It is not.
    """
    got = hashlib.new(digest.algorithm, raw).hexdigest()
    if got != digest.hex:
        raise DigestMismatch(f"{where}: manifest {digest}: got {digest.algorithm}:{got}", "fetch it again")
    return raw


def describe_manifest(raw: bytes, digest: Digest, where: str, content_type: str = "") -> Descriptor:
    """Describe a manifest. The type is its mediaType, else the `content_type` of the server, else guessed from its keys.

    A document that could be read as both kinds is refused: another reader may choose the other one (CVE-2021-41190).

    Raises:
        BadInput: `raw` is not a manifest or index, or could be both.
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


def resolve_manifest(
    repository: Repository,
    reference: Reference,
    platform: Platform,
    ask: Callable[[Descriptor, bytes], Platform | None] | None = None,
) -> tuple[Descriptor, bytes]:
    """Return descriptor and raw bytes of the image manifest that `reference` names for exactly `platform`.

    `ask` returns the platform of a manifest from its raw bytes, or None if it is not an image. It is called for indexes
    that do not list platforms.

    Raises:
        BadInput: The index has no manifest for this platform.
        Unsupported: The document is neither an image manifest nor an index.
    """
    return resolve_chain(repository, reference, platform, ask)[-1]


@contextlib.contextmanager
def _named(reference: Reference) -> Iterator[None]:
    """Errors inside begin with `reference`."""
    try:
        yield
    except BadInput as err:
        raise BadInput(f"{reference}: {err.message}", err.hint) from err


def resolve_chain(
    repository: Repository,
    reference: Reference,
    platform: Platform,
    ask: Callable[[Descriptor, bytes], Platform | None] | None = None,
) -> tuple[tuple[Descriptor, bytes], ...]:
    """Return what `resolve_manifest` does, and before it the indexes that led to it, the outermost first."""

    known: dict[tuple[Digest, int], Platform | None] = {}

    def platform_of(entry: Descriptor, depth: int) -> Platform | None:
        """Look at an entry that lists no platform: once, however often indexes list it, and at a bounded number in all."""
        if (entry.digest, depth) not in known:
            if len(known) == UNLISTED_MAX_COUNT:
                raise BadInput(
                    f"its indexes have more than {UNLISTED_MAX_COUNT} entries without a platform",
                    "choose one by its digest",
                )
            known[entry.digest, depth] = None
            known[entry.digest, depth] = find_platform(entry, depth)
        return known[entry.digest, depth]

    def find_platform(entry: Descriptor, depth: int) -> Platform | None:
        """Read the platform of an entry. An index is for `platform` if it has a manifest for it."""
        if ask is not None and entry.media_type in MANIFEST_TYPES:
            return ask(entry, repository.manifest(entry))
        if entry.media_type in INDEX_TYPES and depth + 2 <= INDEX_MAX_DEPTH:
            with contextlib.suppress(BadInput):
                Index.parse(repository.manifest(entry)).choose(platform, lambda inner: platform_of(inner, depth + 1))
                return platform
        return None

    try:
        descriptor = repository.resolve(reference.name)
    except SeveralImages as err:
        with _named(reference):
            descriptor = Index(OCI_INDEX, err.candidates, {}).choose(platform)
    chain: list[tuple[Descriptor, bytes]] = []
    for depth in range(1, INDEX_MAX_DEPTH + 1):
        raw = repository.manifest(descriptor)
        chain.append((descriptor, raw))
        if descriptor.media_type in MANIFEST_TYPES:
            return tuple(chain)
        if descriptor.media_type not in INDEX_TYPES:
            schema_1 = descriptor.media_type.startswith("application/vnd.docker.distribution.manifest.v1")
            what = "a Docker schema 1 manifest" if schema_1 else f"a manifest of type {descriptor.media_type!r:.120}"
            raise Unsupported(
                f"{reference}: {what}", "only OCI and Docker schema 2 are supported; push it with a newer tool"
            )
        with _named(reference):
            descriptor = Index.parse(raw).choose(platform, lambda entry, at=depth: platform_of(entry, at))  # type: ignore[misc]
    raise BadInput(f"{reference}: indexes are nested more than {INDEX_MAX_DEPTH} deep")
