"""Write access to the places of images and artifacts: registries, OCI layouts and archives.

The caller writes blobs first and the manifest last, so no tag ever names something incomplete.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from imagetool.progress import Counted, Report, silent
from imagetool.sources.content import Content
from rootdisk.errors import BadInput, DigestMismatch
from rootdisk.oci.documents import MANIFEST_MAX_BYTES, Descriptor, Digest
from rootdisk.system.threads import for_each

UPLOADS = 4  # parallel uploads: registries need time to hash and store each blob


class Target(Protocol):
    """A repository, layout or archive to write to."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether a blob is there."""

    def push_blob(self, descriptor: Descriptor, content: Content, *, mount: str = "") -> None:
        """Write a blob, unless it is there. `mount` is a repository of the same registry that has it, or "".

        Raises:
            DigestMismatch: `content` does not match `descriptor`.
        """

    def push_manifest(self, raw: bytes, media_type: str, tags: Sequence[str], *, fixed: Collection[str] = ()) -> Digest:
        """Write a manifest or index after its blobs, and point `tags` to it. Return its digest.

        The tag "" lists it without a name. No tags at all means that it is only stored, for example as part of an index.
        """

    def tags(self) -> dict[str, Digest]:
        """Return every tag and the manifest that it names."""

    def published(self, tags: Collection[str]) -> dict[str, float]:
        """Return when each of `tags` was written, seconds since 1970, as far as that is recorded."""

    def sweep(self) -> int:
        """Remove blobs that nothing needs, if that is ours to do; return their bytes."""

    def remove(self, digest: Digest) -> None:
        """Remove a manifest and all tags that name it."""

    def interrupt(self) -> None:
        """Abort writes in other threads. Nothing more can be written afterwards."""

    def close(self) -> None:
        """Release files and connections."""


def tag_taken(name: str, found: Digest, wanted: Digest) -> BadInput:
    """The error that a tag that others rely on names something else already."""
    return BadInput(
        f"{name} is {found.short} already, and this is {wanted.short}",
        "raise the version, or move the tag with --force",
    )


def manifest_digest(raw: bytes) -> Digest:
    """Return the digest of a manifest or index that is to be written; BadInput if it is too large for readers."""
    digest = Digest.of(raw)
    if len(raw) > MANIFEST_MAX_BYTES:
        raise BadInput(f"manifest {digest}: {len(raw)} bytes are more than the {MANIFEST_MAX_BYTES} allowed")
    return digest


def push_blobs(
    target: Target,
    blobs: Iterable[tuple[Descriptor, Content]],
    mount: str = "",
    report: Report = silent,
    again: Callable[[Descriptor], bool] = lambda _: False,
    interrupt: Callable[[], None] = lambda: None,
) -> None:
    """Write blobs, several in parallel. `mount` is that of `Target.push_blob`.

    `again` is told of a blob whose content was wrong; if it returns true, the content is read once more, from elsewhere.
    `interrupt` aborts reads of contents; it is called if this program is to end.

    Raises:
        RootdiskError: The first error. Uploads in progress are finished, others are cancelled.
    """
    unique = {descriptor.digest: (descriptor, content) for descriptor, content in blobs}
    counted = Counted(report("publishing"), sum(descriptor.size for descriptor, _ in unique.values()))

    def push(blob: tuple[Descriptor, Content]) -> None:
        """Write one blob and count its bytes."""
        descriptor, content = blob
        digest = descriptor.digest
        counted_content = (lambda: counted.pieces(digest, content())) if callable(content) else content
        while True:
            try:
                target.push_blob(descriptor, counted_content, mount=mount)
                break
            except DigestMismatch:
                if not again(descriptor):
                    raise
        counted.at(digest, descriptor.size)

    def stop() -> None:
        """Abort the uploads in progress."""
        interrupt()
        target.interrupt()

    # The largest first: then all threads have work until the end.
    for_each(sorted(unique.values(), key=lambda blob: -blob[0].size), push, UPLOADS, stop)
