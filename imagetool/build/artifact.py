"""The pipeline: `make_artifact()` is the one way from a source image to an artifact.

`imagetool build`, doit's tasks, `doit reproduce` and `imagetool verify` call it. Before it, imagetool/guest/
makes init, kernel and initramfs. After it, imagetool/build/publish.py publishes the artifact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zstandard import frame_content_size

from imagetool.build import derivation, disk, disk_cache
from imagetool.build.cached_artifact import FoundArtifact, find_built
from imagetool.build.disk_cache import KeptDisk
from imagetool.build.kept_bytes import recall, remember
from imagetool.build.layer_locks import LayerLocks
from imagetool.build.publish import publish, publish_found
from imagetool.build.receipts import DiskReceipt
from imagetool.config.images import Image
from imagetool.guest.initramfs import template_version
from imagetool.guest.programs import VMLINUX_KEPT, BootFiles, kept_vmlinux
from imagetool.packing.manifest import Artifact, Blob, assemble
from imagetool.packing.reuse import INDEX, TREE, blob_name
from imagetool.progress import Report, silent
from imagetool.receipts import Damaged
from imagetool.sources.open import SourceImage
from imagetool.targets.rights import check_push
from imagetool.tree.remarks import Remark, counts, refuse
from rootdisk import __version__
from rootdisk.artifact import zstd_frames
from rootdisk.artifact.compressed import Content
from rootdisk.artifact.format import (
    CHUNKS_TYPE,
    INITRAMFS_TYPE,
    KERNEL_TYPE,
    LAYOUT_VERSION,
    VERITY_TYPE,
    VMLINUX_TYPE,
    ArtifactConfig,
)
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest
from rootdisk.oci.reference import Reference


class MadeArtifact(NamedTuple):
    """An artifact: assembled from a kept disk, or found published. Exactly one of `kept` and `found` is set."""

    key: str
    inputs: dict[str, object]
    digest: Digest
    kept: tuple[KeptDisk, Artifact] | None = None
    found: FoundArtifact | None = None
    made_now: bool = False  # False if the disk was in the cache, or the artifact in a target

    @property
    def disk_size(self) -> int:
        """The size of the disk, bytes."""
        return self.kept[0].receipt.size if self.kept else self._found.disk_size

    @property
    def compressed(self) -> int:
        """The size of the disk's blobs, bytes."""
        return self.kept[0].receipt.compressed if self.kept else self._found.compressed

    @property
    def chunks(self) -> tuple[int, int]:
        """The number of new chunks, and of those that existed before."""
        if self.kept is None:
            return 0, self._found.chunks
        receipt = self.kept[0].receipt
        if self.made_now:
            return receipt.chunks_new, receipt.chunks_reused
        return 0, receipt.chunks_new + receipt.chunks_reused

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Remarks about changed or omitted parts of the image. For an artifact that was found, only counts are known."""
        return self.kept[0].receipt.remarks if self.kept else ()

    @property
    def left_out(self) -> Mapping[str, int]:
        """The numbers of changed or omitted things, by kind."""
        return counts(self.remarks) if self.kept else self._found.left_out

    @property
    def _found(self) -> FoundArtifact:
        assert self.found is not None
        return self.found


def make_artifact(
    image: Image,
    source: SourceImage | Digest,
    boot: BootFiles,
    cache: Path,
    targets: Sequence[Reference] = (),
    *,
    report: Report = silent,
    threads: int | None = None,
) -> MadeArtifact:
    """Turn a source image into an artifact, or find the one that was built earlier from the same inputs.

    source, settings, guest, compressor ─▶ inputs ─▶ derivation key
      the key is in `cache`/disks?    ─▶ that disk
      the key's tag is in a target?   ─▶ that artifact, if it has exactly these inputs
      else layers ─▶ tree ─▶ plan ─▶ chunks ─▶ blobs (disk.make_disk), kept under the key
    disk, kernel, initramfs, vmlinux ─▶ config ─▶ manifest

    `source` is the open source, or the digest of its manifest: then it is opened only if a disk has to be made.
    `targets` are the places where the artifact will be published. Two processes may do the same at once: both get the
    same artifact.

    Raises:
        Damaged: the guest's files are not what `boot` says.
        RegistryError: a target cannot be asked, or would refuse what is built.
        BadInput: the image is strict, and a part of it had to be changed or left out.
        RootdiskError: the source cannot be read, or no longer has the digest `source`.
    """
    digest = source if isinstance(source, Digest) else source.manifest_digest
    inputs = derivation.inputs(image, digest, boot.guest, zstd_frames.versions())
    key = derivation.derivation_key(inputs)

    was_kept = disk_cache.is_kept(cache, key)
    kept = disk_cache.find_disk(cache, key)  # locked: nobody removes it until this process ends
    made_now = kept is None
    if kept is not None and image.strict:
        refuse(kept.receipt.remarks)
    if kept is None:
        # If the kept disk was damaged, a layout may be damaged too: its blobs are hard links to ours.
        found = None if was_kept else find_built(image, inputs, targets)
        # A strict build is made even so, to say what it has to leave out.
        if found is not None and not (image.strict and found.left_out):
            return MadeArtifact(key, inputs, found.descriptor.digest, found=found)
        check_push(targets, disk.registry(image))
        with (
            _open_source(image, source) as source_image,
            LayerLocks(cache) as locks,  # until the disk is kept, and others can use it
            disk_cache.new_disk(cache) as folder,
        ):
            if source_image.manifest_digest != digest:
                raise RootdiskError(f"{image.source} changed while it was built", "start the build again")
            packed = disk.make_disk(image, source_image, _init(boot), folder, cache, locks, report, threads)
            kept = disk_cache.keep_disk(folder, _receipt(packed, key, inputs, folder))

    artifact = assemble_artifact(image, kept, boot)
    return MadeArtifact(key, inputs, artifact.descriptor.digest, (kept, artifact), made_now=made_now)


def publish_artifact(
    image: Image,
    source: SourceImage | Digest,
    boot: BootFiles,
    cache: Path,
    targets: tuple[Reference, ...],
    tag: str,
    gate: Callable[[MadeArtifact], None] = lambda artifact: None,
    *,
    force: bool = False,
    report: Report = silent,
    threads: int | None = None,
) -> MadeArtifact:
    """Make the artifact with `make_artifact` and publish it in every target. A damaged kept file is made again.

    `gate` is called with the artifact before it is published; if it raises, nothing is published.
    """
    artifact = make_artifact(image, source, boot, cache, targets, report=report, threads=threads)
    try:
        gate(artifact)
        _publish(artifact, image, targets, tag, force, report)
    except Damaged:
        disk_cache.remove_damaged(cache)
        artifact = make_artifact(image, source, boot, cache, targets, report=report, threads=threads)
        gate(artifact)
        _publish(artifact, image, targets, tag, force, report)
    return artifact


def _publish(
    artifact: MadeArtifact, image: Image, targets: tuple[Reference, ...], tag: str, force: bool, report: Report
) -> None:
    if artifact.kept is not None:
        publish(artifact.kept[1], image, targets, tag, force=force, report=report)
    elif artifact.found is not None:
        publish_found(artifact.found, artifact.key, image, targets, tag, force=force, report=report)


def assemble_artifact(image: Image, disk: KeptDisk, boot: BootFiles) -> Artifact:
    """Assemble the artifact from the kept `disk` and, if there are any, kernel, initramfs and vmlinux.

    Raises:
        Damaged: one of them is not what `boot` says.
    """
    receipt, guest = disk.receipt, boot.guest
    # First, because the uncompressed one takes 53 MB for a moment: the kernel's 14 MB are not beside it.
    vmlinux = _compressed(boot.vmlinux, guest.vmlinux) if boot.vmlinux and guest.vmlinux else None
    kernel = _read(boot.kernel, guest.kernel) if boot.kernel else None
    initramfs = _read(boot.initramfs, guest.initramfs) if boot.initramfs else None
    local = image.source.kind != "registry"
    config = ArtifactConfig(
        layout_version=LAYOUT_VERSION,
        platform=image.platform,
        disk_size=receipt.size,
        disk_digest=receipt.digest,
        disk_uuid=receipt.uuid,
        slots=receipt.slots,
        process=receipt.process,
        cmdline=derivation.cmdline(image),
        memory_mib=image.memory >> 20,
        cpus=image.cpus,
        derivation_key=receipt.key,
        inputs=receipt.inputs,
        source="" if local else str(image.source),
        source_digest=receipt.source_digest,
        writer=receipt.writer,
        labels={**receipt.labels, **image.labels},
        layers=receipt.layers,
        left_out=counts(receipt.remarks),
        verity=receipt.verity,
        boot_chunks=receipt.boot_chunks,
        allow=image.allow,
        template=template_version(initramfs) if initramfs else 0,
        vmlinux=Content(guest.vmlinux, frame_content_size(vmlinux)) if vmlinux and guest.vmlinux else None,
    )
    blobs = [
        Blob.of_disk(disk.folder / blob_name(n), digest, size, n if len(receipt.blobs) > 1 else None)
        for n, (digest, size) in enumerate(receipt.blobs)
    ]
    return assemble(
        config,
        blobs,
        Blob.of_bytes(CHUNKS_TYPE, (disk.folder / INDEX).read_bytes()),
        Blob.of_bytes(KERNEL_TYPE, kernel, guest.kernel) if kernel else None,
        Blob.of_bytes(INITRAMFS_TYPE, initramfs, guest.initramfs) if initramfs else None,
        Blob.of_bytes(VERITY_TYPE, (disk.folder / TREE).read_bytes()) if receipt.verity else None,
        Blob.of_bytes(VMLINUX_TYPE, vmlinux) if vmlinux else None,
    )


def _compressed(vmlinux: Path, digest: Digest) -> bytes:
    """Return the vmlinux with this digest, compressed. It is kept beside it: it takes as long as a small image.

    Raises:
        Damaged: it is another.
    """
    name = kept_vmlinux(digest)
    path = vmlinux.with_name(VMLINUX_KEPT)
    kept = recall(path)
    if kept is not None and kept.startswith(name):
        return kept[len(name) :]
    path.unlink(missing_ok=True)  # or it would count as a good one when the kernel is checked
    compressed = zstd_frames.compressor().compress(_read(vmlinux, digest))
    remember(path, name + compressed)
    return compressed


def _read(path: Path, digest: Digest | None) -> bytes:
    """Read a file that was made earlier; Damaged if it is not the one with this digest."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise Damaged(f"{path}: {err.strerror}") from err
    if Digest.of(data) != digest:
        raise Damaged(f"{path} is damaged")
    return data


def _open_source(image: Image, source: SourceImage | Digest) -> contextlib.AbstractContextManager[SourceImage]:
    return disk.open_image(image) if isinstance(source, Digest) else contextlib.nullcontext(source)


def _init(boot: BootFiles) -> bytes:
    data = boot.init.read_bytes()
    if Digest.of(data) != boot.guest.init:
        raise Damaged(f"{boot.init} is damaged, or changed while it was built", "start the build again")
    return data


def _receipt(built: disk.Disk, key: str, inputs: dict[str, object], folder: Path) -> DiskReceipt:
    packed = built.packed
    return DiskReceipt(
        key=key,
        inputs=inputs,
        size=packed.index.disk_size,
        digest=packed.index.disk_digest(),
        blobs=tuple((part.digest, part.size) for part in packed.parts),
        slots=built.slots,
        layers=built.layers,
        uuid=built.uuid,
        process=built.process,
        labels=built.labels,
        source_digest=built.source_digest,
        chunks_new=packed.new_chunks,
        chunks_reused=packed.reused_chunks,
        writer={"rootdisk": __version__, **zstd_frames.versions()},
        files=disk_cache.files_of(folder),
        remarks=built.remarks,
        boot_chunks=built.boot_chunks,
        verity=built.verity,
    )
