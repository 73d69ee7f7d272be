"""Where images and artifacts are written to: an OCI layout on disk (the default) or a repository of a registry.

Order is the caller's: blobs first, the manifest last, so that no name ever leads to something incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from imagetool.content import Content
from imagetool.progress import Counted, Report, silent
from rootdisk.oci.documents import Descriptor, Digest

UPLOADS = 4  # blobs at once: registries take their time to hash and keep each


class Target(Protocol):
    """Write access to one repository or layout."""

    def has_blob(self, descriptor: Descriptor) -> bool: ...

    def push_blob(self, descriptor: Descriptor, content: Content, *, mount: str = "") -> None:
        """Write one blob, unless it is there; DigestMismatch where `content` is not what `descriptor` says.

        `mount` is a repository of the same registry that has it, "" where none is known.
        """

    def push_manifest(self, raw: bytes, media_type: str, tags: Sequence[str]) -> Digest:
        """Write a manifest or index whose blobs are there, and point `tags` to it; its digest.

        A tag "" means listed without a name; no tags at all means stored only, as the children of an index are.
        """

    def tags(self) -> dict[str, Digest]:
        """Every tag there is, and the manifest it names."""

    def remove(self, digest: Digest) -> None:
        """Remove a manifest, and with it all tags that name it."""

    def close(self) -> None: ...


def push_blobs(
    target: Target, blobs: Iterable[tuple[Descriptor, Content]], mount: str = "", report: Report = silent
) -> None:
    """All blobs, several at once; `mount` as in Target.push_blob. The first error ends it, when what was begun has ended."""
    different = {descriptor.digest: (descriptor, content) for descriptor, content in blobs}
    counted = Counted(report("publishing"), sum(descriptor.size for descriptor, _ in different.values()))

    def push(descriptor: Descriptor, content: Content) -> None:
        digest = descriptor.digest
        shown = content if isinstance(content, Path) else lambda: counted.pieces(digest, content())
        target.push_blob(descriptor, shown, mount=mount)
        counted.at(digest, descriptor.size)

    with ThreadPoolExecutor(UPLOADS, "push") as pool:
        sent = [pool.submit(push, *blob) for blob in different.values()]
        try:
            for future in sent:
                future.result()
        finally:
            for future in sent:
                future.cancel()
