"""Export as KubeVirt's container disk: an OCI image with the disk in /disk, and kernel and initramfs for `kernelBoot` in /boot.

KubeVirt and its importer (CDI) want exactly one file in /disk, qcow2 or raw, without a backing file, readable by user 107, as whom
QEMU runs there. The layers are tars without times, compressed with zstd; the kernel has a layer of its own, which later versions share.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from imagetool.export.boot import Boot, virtual_machine_instance
from imagetool.export.chunks import data_chunks
from imagetool.export.qcow2 import write_qcow2
from imagetool.sources.content import PIECE_BYTES
from imagetool.targets.archive import ArchiveTarget
from imagetool.targets.open import open_target
from imagetool.targets.target import Target, push_blobs
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.artifact.zstd_frames import compressor
from rootdisk.errors import BadInput
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest, Manifest, Platform, canonical_json
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions

QEMU_ID = 107  # user and group of QEMU in KubeVirt's pods
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
DISK_PATH = "disk/disk.qcow2"


class Layer(NamedTuple):
    """A layer in a temporary file, its digests known."""

    file: IO[bytes]
    descriptor: Descriptor
    diff_id: Digest

    def pieces(self) -> Iterator[bytes]:
        """Yield the layer's bytes. Only one thread may do so at once."""
        self.file.seek(0)
        while piece := self.file.read(PIECE_BYTES):
            yield piece


def export_containerdisk(
    artifact: PublishedArtifact, to: Reference, options: RegistryOptions, room: Path, *, replace: bool
) -> tuple[Digest, str]:
    """Write `artifact` as a container disk to `to`; temporary files are in `room`. Return its digest, and a VirtualMachineInstance.

    Raises:
        BadInput: `to` names something else already and is not to be replaced, or the artifact cannot boot without the runner.
        DigestMismatch: The artifact is damaged.
    """
    if to.digest is not None or not to.tag:
        raise BadInput(f"{to}: a container disk needs a tag", "write registry/repository:tag, oci:DIR:TAG or …")
    boot = Boot.of(artifact)
    with (
        contextlib.ExitStack() as stack,
        tempfile.TemporaryFile(dir=room) as disk_file,
        tempfile.TemporaryFile(dir=room) as boot_file,
    ):
        target: Target
        if to.kind == "oci-archive" and to.path is not None:
            target = ArchiveTarget(to.path, replace=replace)
        else:
            target = open_target(to, options)
        stack.callback(target.close)
        layers = [_disk_layer(artifact, room, disk_file), _boot_layer(boot, boot_file)]
        config = canonical_json(_config(boot.platform, [layer.diff_id for layer in layers]))
        manifest = Manifest(
            OCI_MANIFEST,
            "",
            Descriptor(CONFIG_TYPE, Digest.of(config), len(config)),
            tuple(layer.descriptor for layer in layers),
            {},
        )
        blobs = [(layer.descriptor, layer.pieces) for layer in layers]
        push_blobs(target, [(manifest.config, config), *blobs])
        fixed = () if replace else (to.tag,)
        digest = target.push_manifest(canonical_json(manifest.to_json()), OCI_MANIFEST, (to.tag,), fixed=fixed)
    place = to.place if to.kind == "registry" else f"registry.example/{_name(to)}"
    return digest, virtual_machine_instance(boot, _name(to), f"{place}@{digest}")


def _name(to: Reference) -> str:
    """Return a name for the VirtualMachineInstance: a DNS label (RFC 1123)."""
    last = to.repository.rpartition("/")[2] if to.path is None else to.path.absolute().name
    label = "".join(char if char.isascii() and char.isalnum() else "-" for char in last.lower())
    return label.strip("-")[:63].strip("-") or "disk"


def _config(platform: Platform, diff_ids: Sequence[Digest]) -> dict[str, object]:
    """Return the image's config. It has no time, so the same disk gives the same image."""
    value: dict[str, object] = {"architecture": platform.architecture, "os": platform.os, "config": {}}
    if platform.variant:
        value["variant"] = platform.variant
    return {**value, "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in diff_ids]}}


def _disk_layer(artifact: PublishedArtifact, room: Path, file: IO[bytes]) -> Layer:
    with tempfile.TemporaryFile(dir=room) as disk:
        write_qcow2(disk, artifact.config.disk_size, data_chunks(artifact))
        size = disk.seek(0, io.SEEK_END)
        disk.seek(0)

        def write(tar: tarfile.TarFile) -> None:
            """Add the disk, which belongs to QEMU's user."""
            tar.addfile(_directory("disk", QEMU_ID))
            tar.addfile(_file(DISK_PATH, size, QEMU_ID, 0o440), disk)

        return _layer(write, file)


def _boot_layer(boot: Boot, file: IO[bytes]) -> Layer:
    def write(tar: tarfile.TarFile) -> None:
        """Add what `kernelBoot` names."""
        tar.addfile(_directory("boot", 0))
        for name, data in (("boot/initramfs", boot.initramfs), ("boot/vmlinuz", boot.kernel)):
            tar.addfile(_file(name, len(data), 0, 0o444), io.BytesIO(data))

    return _layer(write, file)


def _layer(write: Callable[[tarfile.TarFile], None], file: IO[bytes]) -> Layer:
    """Compress the tar that `write` fills into `file`."""
    raw, packed = _Hashed(), _Hashed(file)
    with compressor().stream_writer(cast("IO[bytes]", packed), closefd=False) as stream:
        raw.below = stream
        with tarfile.open(fileobj=raw, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            write(tar)
    return Layer(file, Descriptor(LAYER_TYPE, packed.digest, packed.size), raw.digest)


class _Hashed(io.RawIOBase):
    """A file that passes writes on to another file and knows the digest of what was written."""

    def __init__(self, below: IO[bytes] | None = None) -> None:
        self.below, self.size, self._sha256 = below, 0, hashlib.sha256()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write all of `data`."""
        self._sha256.update(data)
        self.size += len(data)
        if self.below is not None:
            self.below.write(data)
        return len(data)

    @property
    def digest(self) -> Digest:
        """The digest of everything so far."""
        return Digest("sha256", self._sha256.hexdigest())


def _directory(name: str, owner: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, 0o755, owner, owner
    return member


def _file(name: str, size: int, owner: int, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.uid, member.gid = size, mode, owner, owner
    return member
