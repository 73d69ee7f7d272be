"""The blobs that boot a disk, and what the store keeps of each: the dm-verity tree and the vmlinux are kept decompressed."""

from __future__ import annotations

from typing import NamedTuple

from rootdisk.artifact.compressed import Content
from rootdisk.artifact.format import ArtifactConfig, ArtifactManifest
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Descriptor, Platform


class BootBlob(NamedTuple):
    """A blob, and the content that the store keeps under its digest."""

    role: str  # kernel, initramfs, verity or vmlinux
    descriptor: Descriptor
    content: Content
    what: str = ""  # for messages, if it is to be decompressed


def plain_blobs(roles: ArtifactManifest) -> tuple[BootBlob, ...]:
    """Return the blobs that boot a disk and are stored unchanged: the manifest has their digests and sizes."""
    return tuple(
        BootBlob(role, descriptor, Content(descriptor.digest, descriptor.size))
        for role, descriptor in (("kernel", roles.kernel), ("initramfs", roles.initramfs))
        if descriptor is not None
    )


def boot_blobs(roles: ArtifactManifest, config: ArtifactConfig) -> tuple[BootBlob, ...]:
    """Return the blobs that boot the disk of an artifact.

    Raises:
        BadInput: Config and manifest disagree about one.
    """
    tree = config.verity.tree if config.verity else None
    return (
        *plain_blobs(roles),
        *_compressed("verity", roles.verity, tree, "the dm-verity tree"),
        *_compressed("vmlinux", roles.vmlinux, config.vmlinux, "the vmlinux"),
    )


def starts_vmlinux(platform: Platform) -> bool:
    """Return whether QEMU starts the vmlinux in place of the kernel. All its machines on x86 can (QEMU 4.0, by a PVH entry)."""
    return platform.architecture == "amd64"


def needed_to_start(roles: ArtifactManifest, config: ArtifactConfig) -> tuple[BootBlob, ...]:
    """Return the blobs without which QEMU cannot start the artifact: not the kernel, if it starts the vmlinux."""
    blobs = boot_blobs(roles, config)
    is_vmlinux = config.vmlinux is not None and starts_vmlinux(config.platform)
    return tuple(blob for blob in blobs if not (blob.role == "kernel" and is_vmlinux))


def _compressed(role: str, descriptor: Descriptor | None, content: Content | None, what: str) -> list[BootBlob]:
    if descriptor is None or content is None:
        if descriptor is not None or content is not None:
            raise BadInput(f"config and manifest disagree about {what}", "the artifact is damaged")
        return []
    return [BootBlob(role, descriptor, content, what)]
