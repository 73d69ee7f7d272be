"""An artifact's blobs, config and manifest, as docs/artifact-1.md describes them. No file is read here.

Nothing in it depends on who builds, where or when: equal inputs give an equal manifest digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imagetool.packing.reuse import BLOB, TREE, blob_name
from rootdisk.artifact.format import (
    ARTIFACT_TYPE,
    CHUNKS_TYPE,
    CONFIG_TYPE,
    DISK_TYPE,
    INITRAMFS_TYPE,
    KERNEL_TYPE,
    VERITY_TYPE,
    VMLINUX_TYPE,
    ArtifactConfig,
    key_tag,
)
from rootdisk.errors import BadInput
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest, Manifest, canonical_json

TITLE = "org.opencontainers.image.title"
TITLES = {
    CHUNKS_TYPE: "rootfs.ext4.chunks",
    KERNEL_TYPE: "vmlinuz",
    INITRAMFS_TYPE: "initramfs",
    VERITY_TYPE: TREE,
    VMLINUX_TYPE: "vmlinux.zst",
}


class Blob(NamedTuple):
    """A blob, and its bytes: in a file of ours, or in memory."""

    descriptor: Descriptor
    data: Path | bytes

    @classmethod
    def of_bytes(cls, media_type: str, data: bytes, digest: Digest | None = None) -> Blob:
        """Return the blob of `data`; `digest` is theirs, if it is known."""
        return cls(_descriptor(media_type, digest or Digest.of(data), len(data)), data)

    @classmethod
    def of_disk(cls, path: Path, digest: Digest, size: int, number: int | None) -> Blob:
        """Return the blob of a file of `size` bytes that we have written, so its digest is known.

        The push verifies it, unless this process has written it. `number` is its place among several, None if it is the whole disk.
        """
        title = BLOB if number is None else blob_name(number)
        return cls(Descriptor(DISK_TYPE, digest, size, {TITLE: title}), path)


class Artifact(NamedTuple):
    """An artifact that is ready to publish: manifest bytes and the blobs it names."""

    manifest: bytes
    blobs: tuple[Blob, ...]
    key_tag: str

    @property
    def descriptor(self) -> Descriptor:
        """The manifest's descriptor."""
        return Descriptor(OCI_MANIFEST, Digest.of(self.manifest), len(self.manifest), artifact_type=ARTIFACT_TYPE)


def assemble(config: ArtifactConfig, disk: Sequence[Blob], chunks: Blob, *optional: Blob | None) -> Artifact:
    """Assemble the artifact of a packed disk; `optional` are the blobs that boot it, None if it has none.

    Raises:
        BadInput: no runner would read the config.
    """
    raw_config = canonical_json(config.to_json())
    try:
        ArtifactConfig.parse(raw_config)
    except BadInput as err:
        raise BadInput(err.message, "no runner would read the artifact: make it smaller in the image") from None
    config_blob = Blob.of_bytes(CONFIG_TYPE, raw_config)
    layers = [blob for blob in (*disk, chunks, *optional) if blob is not None]
    annotations = {"org.opencontainers.image.base.digest": config.source_digest}
    if config.source:
        annotations["org.opencontainers.image.base.name"] = config.source
    manifest = Manifest(
        OCI_MANIFEST,
        ARTIFACT_TYPE,
        config_blob.descriptor,
        tuple(blob.descriptor for blob in layers),
        annotations,
    )
    raw = canonical_json(manifest.to_json())
    return Artifact(raw, (config_blob, *layers), key_tag(config.derivation_key))


def _descriptor(media_type: str, digest: Digest, size: int) -> Descriptor:
    title = TITLES.get(media_type)
    return Descriptor(media_type, digest, size, {TITLE: title} if title else {})
