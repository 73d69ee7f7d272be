"""The blobs that boot a disk, and what the store keeps of each: the dm-verity tree and the vmlinux are kept decompressed."""

from __future__ import annotations

from typing import NamedTuple

from rootdisk.artifact.compressed import Content
from rootdisk.artifact.format import ArtifactConfig, ArtifactManifest
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Descriptor


class BootBlob(NamedTuple):
    """A blob, and the content that the store keeps under its digest."""

    role: str  # kernel, initramfs, verity or vmlinux
    descriptor: Descriptor
    content: Content
    what: str = ""  # for messages, if it is to be decompressed


def boot_blobs(roles: ArtifactManifest, config: ArtifactConfig) -> tuple[BootBlob, ...]:
    """Return the blobs that boot the disk of an artifact.

    Raises:
        BadInput: Config and manifest disagree about one.
    """
    blobs = [
        BootBlob(role, descriptor, Content(descriptor.digest, descriptor.size))
        for role, descriptor in (("kernel", roles.kernel), ("initramfs", roles.initramfs))
        if descriptor is not None
    ]
    tree = config.verity.tree if config.verity else None
    blobs += _compressed("verity", roles.verity, tree, "the dm-verity tree")
    return (*blobs, *_compressed("vmlinux", roles.vmlinux, config.vmlinux, "the vmlinux"))


def _compressed(role: str, descriptor: Descriptor | None, content: Content | None, what: str) -> list[BootBlob]:
    if descriptor is None or content is None:
        if descriptor is not None or content is not None:
            raise BadInput(f"config and manifest disagree about {what}", "the artifact is damaged")
        return []
    return [BootBlob(role, descriptor, content, what)]
