"""Where images and artifacts are written to: an OCI layout on disk (the default) or a repository of a registry.

Order is the caller's: blobs first, the manifest last, so that no name ever leads to something incomplete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from imagetool.progress import Counted, Report, silent
from runner.errors import BadInput, RootdiskError
from runner.oci import Descriptor, Digest
from runner.reference import Reference
from runner.repository import RegistryOptions

# A blob's bytes: a file, or a function that gives them from the start each time it is called (an upload may be sent twice).
Content = Path | Callable[[], Iterator[bytes]]

PIECE_BYTES = 1 << 20
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


def open_target(reference: Reference, options: RegistryOptions | None = None) -> Target:
    """The place that `reference` names, made where it is a layout directory that does not exist yet."""
    if reference.kind == "registry":
        from imagetool.oci.registry_target import RegistryTarget

        return RegistryTarget(reference.registry, reference.repository, options or RegistryOptions())
    if reference.kind == "oci" and reference.path is not None:
        from imagetool.oci.layout_writer import LayoutTarget

        return LayoutTarget(reference.path)
    if reference.kind == "oci-archive" and reference.path is not None:
        from imagetool.oci.archive_target import ArchiveTarget

        return ArchiveTarget(reference.path)
    raise BadInput(f"{reference}: cannot be written to", "write to a registry, oci:DIR:TAG or oci-archive:FILE:TAG")


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


def pieces(content: Content) -> Iterator[bytes]:
    """The bytes of `content`, from the start."""
    if not isinstance(content, Path):
        yield from content()
        return
    try:
        with content.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
    except OSError as err:  # not to be taken for the network's
        raise RootdiskError(f"{content}: {err.strerror}") from err
