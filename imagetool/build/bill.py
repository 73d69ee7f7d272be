"""Bills of material (SBOM) of what is built: of an artifact before it is published, and of a source image.

Both are read as the disks that they are or would become, so a file's layer is known by its inode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from imagetool.build.disk import planned
from imagetool.config.images import Image
from imagetool.ext4.planned import PlannedDisk
from imagetool.ext4.reader import Node, Reader
from imagetool.packing.manifest import Artifact
from imagetool.progress import Report, silent
from imagetool.sbom.documents import document
from imagetool.sbom.formats import MEDIA_TYPES, Format
from imagetool.sbom.packages import Found, find
from imagetool.sources.open import SourceImage
from imagetool.targets.attach import push_attached
from imagetool.targets.target import Target
from rootdisk.artifact.disk import Device
from rootdisk.artifact.layers import LayerInodes, layer_of
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.oci.repository import Repository


class LayeredDisk(NamedTuple):
    """A disk, and which layer its inodes come from."""

    reader: Reader
    layers: Sequence[LayerInodes]

    def layer(self, node: Node) -> str:
        """Return the diff ID of the layer that an inode comes from, or "" if unknown."""
        return layer_of(self.layers, node.number)


def packages_of_source(image: Image, source: SourceImage, cache: Path, report: Report = silent) -> Found:
    """List the packages of a source image. Its disk is planned, and no byte of it is written."""
    with planned(image, source, cache, report) as (plan, sources):
        device: Device = PlannedDisk(plan, sources)
        return find(LayeredDisk(Reader(device), plan.layers))


def bill(artifact: PublishedArtifact, form: Format) -> bytes:
    """Write the bill of material of an artifact's disk. Its repository, which is the caller's, stays open."""
    disk = LayeredDisk(Reader(artifact.disk()), artifact.config.layers)
    return document(find(disk), str(artifact.config.disk_digest), form)


def attach_bill(target: Target, subject: Descriptor, artifact: PublishedArtifact, form: Format) -> Digest:
    """Attach the bill of material of an artifact. The same one has the same digest, so it is attached once."""
    text = bill(artifact, form)
    layer = Descriptor(MEDIA_TYPES[form], Digest.of(text), len(text))
    return push_attached(target, subject, layer, text)


def unpublished(artifact: Artifact) -> PublishedArtifact:
    """Open an artifact that is not published yet: its blobs are read from where they were made."""
    blobs = {blob.descriptor.digest: blob.data for blob in artifact.blobs}
    return PublishedArtifact(cast("Repository", _OwnBlobs(blobs)), artifact.descriptor, artifact.manifest)


class _OwnBlobs(NamedTuple):
    """A repository over files and bytes of ours, as far as a reader of an artifact needs one."""

    blobs: Mapping[Digest, Path | bytes]
    serves_ranges: bool = True

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a blob."""
        data, stop = self.blobs[descriptor.digest], descriptor.size if end is None else end
        if isinstance(data, bytes):
            yield data[start:stop]
            return
        with data.open("rb") as file:
            file.seek(start)
            yield file.read(stop - start)

    def close(self) -> None:
        """Release nothing."""
