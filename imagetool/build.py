"""The way of the data: a source image becomes a disk, a packed disk an artifact, an artifact a published one.

`make_disk` is the whole conversion in one function. The others are its ends; dodo's tasks (imagetool/steps.py) and the
command line call them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imagetool import layers as layer_data
from imagetool import recipe
from imagetool.artifact import frames
from imagetool.artifact.manifest import Artifact, Blob, assemble
from imagetool.artifact.pack import Packed
from imagetool.artifact.pack import pack as pack_disk
from imagetool.artifact.reuse import BLOB, INDEX, KEYS, Earlier
from imagetool.config import Image
from imagetool.ext4 import DiskOptions, Plan, plan, write_disk
from imagetool.layout.additions import Additions, add
from imagetool.layout.certificates import check_certificates
from imagetool.oci.image import ImageConfig
from imagetool.oci.push import open_target
from imagetool.oci.sources import open_source
from imagetool.tree.merge import merge
from imagetool.tree.model import BytesSource, File, Source
from runner import __version__
from runner.artifact import (
    CHUNKS_TYPE,
    DISK_TYPE,
    INITRAMFS_TYPE,
    KERNEL_TYPE,
    LAYOUT_VERSION,
    ArtifactConfig,
    LayerInodes,
    Process,
    SlotExtent,
)
from runner.errors import BadInput, RootdiskError
from runner.oci import OCI_MANIFEST, Digest, Platform
from runner.repository import RegistryOptions

CMDLINE = "console=ttyS0 reboot=t panic=-1 quiet rdinit=/init"
DISK = "rootfs.ext4"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ResolvedSource:
    """What a source reference means now."""

    reference: str
    digest: str
    platform: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> ResolvedSource:
        return cls(str(value["reference"]), str(value["digest"]), str(value["platform"]))


def resolve(image: Image) -> ResolvedSource:
    """The manifest digest of the image's source, for its platform."""
    with open_source(str(image.source), image.platform, _options(image)) as source:
        return ResolvedSource(str(image.source), str(source.manifest_digest), str(image.platform))


@dataclass(frozen=True, slots=True)
class Disk:
    """A packed disk and what its artifact's config says of it."""

    packed: Packed
    slots: tuple[SlotExtent, ...]
    layers: tuple[LayerInodes, ...]
    uuid: str
    process: Process
    labels: Mapping[str, str]
    source_digest: str


def make_disk(
    image: Image,
    out: Path,
    *,
    init: bytes | None,
    cache: Path,
    raw: bool = True,
    digest: str = "",
    progress: Progress | None = None,
) -> Disk:
    """The disk of `image`, as files in directory `out`: zstd file, chunk index, keys and, with `raw`, the sparse disk.

    `init` is the guest's init, None for the image's own tree and nothing added; `digest` the source's, where it is known
    already. Chunks of earlier disks under `cache`/disks are used again.
    """
    with (
        open_source(str(image.source), image.platform, _options(image)) as source,
        layer_data.opened(source, cache) as layers,
        Earlier(sorted((cache / "disks").glob("[0-9a-f]*"))) as earlier,
    ):
        if digest and str(source.manifest_digest) != digest:
            raise RootdiskError(f"{image.source}: changed while it was built", "start doit build again")
        tree = merge(layer_data.scanned(layers))
        process = image.process.apply(source.config.process)
        sources: list[Source] = list(layers)
        if init is not None:
            additions = _additions(image, source.config, process, init)
            sources.append(BytesSource(add(tree, lambda file: _read(sources, file), additions)))
        identity = _uuid(tree.layers[0].diff_id, image.name)
        made = plan(tree, DiskOptions(image.size, identity.bytes))
        del tree
        packed = _write(made, sources, out, raw, earlier, progress)
        return Disk(
            packed,
            made.slots,
            made.layers,
            str(identity),
            process,
            source.config.labels,
            str(source.manifest_digest),
        )


def make_raw(image: Image, file: Path, cache: Path, *, plain: bool) -> None:
    """Only the raw, sparse disk of `image`, as `file`; `plain`: its own tree and nothing added."""
    with (
        open_source(str(image.source), image.platform, _options(image)) as source,
        layer_data.opened(source, cache) as layers,
    ):
        tree = merge(layer_data.scanned(layers))
        sources: list[Source] = list(layers)
        if not plain:
            process = image.process.apply(source.config.process)
            init = cached_init(image.platform, cache).read_bytes()
            additions = _additions(image, source.config, process, init)
            sources.append(BytesSource(add(tree, lambda file: _read(sources, file), additions)))
        write_disk(plan(tree, DiskOptions(image.size, _uuid(tree.layers[0].diff_id, image.name).bytes)), sources, file)


def build_artifact(image: Image, work: Path, cache: Path) -> tuple[Artifact, Disk]:
    """The whole artifact of `image`, without doit: its big files in `work`, ready to push."""
    init = cached_init(image.platform, cache)
    kernel = make_kernel(image, init, work, cache / "kernels")
    disk = make_disk(image, work, init=init.read_bytes(), cache=cache, raw=False)
    guest = recipe.Guest(
        Digest.of(init.read_bytes()),
        *(Digest.parse(kernel[name]) if kernel[name] else None for name in ("kernel", "initramfs")),
    )
    inputs = recipe.inputs(image, Digest.parse(disk.source_digest), guest, frames.versions())
    receipt = {**disk_receipt(disk), "inputs": inputs, "key": recipe.derivation_key(inputs)}
    files = [work / name if kernel[key] else None for key, name in (("kernel", "vmlinuz"), ("initramfs", "initramfs"))]
    return assemble_disk(image, receipt, work / BLOB, disk.packed.index.pack(), *files), disk


def cached_init(platform: Platform, cache: Path) -> Path:
    """The guest's init, built when its sources are newer than it."""
    from imagetool.guest import init as guest

    path = cache / "guest" / platform.architecture / "init"
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [Path(guest.__file__).parent / name for name in (*guest.SOURCES, "init.h")]
    if not path.exists() or path.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        make_init(platform, path)
    return path


def _write(
    made: Plan, sources: list[Source], out: Path, raw: bool, earlier: Earlier, progress: Progress | None
) -> Packed:
    """All files of the disk, written and synced."""
    disk = os.open(out / DISK, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644) if raw else None
    try:
        with (out / BLOB).open("wb") as blob:
            packed = pack_disk(made, sources, blob, disk, earlier=earlier, progress=progress)
            os.fsync(blob.fileno())
    finally:
        if disk is not None:
            os.close(disk)
    (out / INDEX).write_bytes(packed.index.pack())
    (out / KEYS).write_bytes(packed.keys)
    return packed


def _additions(image: Image, config: ImageConfig, process: Process, init: bytes) -> Additions:
    def certificates(data: bytes | None, name: str) -> bytes | None:
        return None if data is None else check_certificates(data, f"image.{image.name}.tls.{name}")

    return Additions(
        init=init,
        process=process,
        env=(*config.env, *image.env),
        tls_ca=certificates(image.tls_ca, "ca"),
        tls_client=certificates(image.tls_client, "client"),
        owners=image.owners,
    )


def _uuid(base: str, name: str) -> uuid.UUID:
    """The disk's UUID, the same in all versions on one base layer.

    Every metadata checksum starts from it, so a UUID of the content would change all metadata chunks in each version.
    """
    return uuid.UUID(bytes=hashlib.sha256(f"rootdisk\0{base}\0{name}".encode()).digest()[:16], version=4)


def _read(sources: list[Source], file: File) -> bytes:
    if file.segments is not None:
        raise BadInput("an account file of the image is sparse", "write it plainly")
    data = bytearray(file.size)
    sources[file.layer].read_into(memoryview(data), file.offset)
    return bytes(data)


def _options(image: Image) -> RegistryOptions:
    return RegistryOptions(plain_http=image.plain_http, ca_file=image.ca_file)


# What dodo's steps call: directories in, receipts out.


def make_init(platform: Platform, out: Path) -> dict[str, Any]:
    """The guest's static init at `out`."""
    from imagetool.guest.init import build_init

    if platform != Platform.host():
        raise BadInput(f"no init for {platform} can be built on {Platform.host()}", "build on such a machine")
    return {"digest": str(build_init(out))}


def make_kernel(image: Image, init: Path, directory: Path, packages: Path | None = None) -> dict[str, Any]:
    """Kernel and initramfs in `directory`, and their digests; None for both where the image wants none."""
    if image.kernel == "none":
        return {"kernel": None, "initramfs": None}
    from imagetool.guest.initramfs import build as build_initramfs
    from imagetool.guest.kernel import find

    kernel = find(image.kernel, image.platform, packages or directory.parent / "kernels")
    initramfs = build_initramfs(init.read_bytes(), [(name, path.read_bytes()) for name, path in kernel.modules])
    vmlinuz = kernel.vmlinuz.read_bytes()
    for name, data in (("vmlinuz", vmlinuz), ("initramfs", initramfs)):
        partial = directory / f".{name}"
        partial.write_bytes(data)
        partial.replace(directory / name)
    return {"kernel": str(Digest.of(vmlinuz)), "initramfs": str(Digest.of(initramfs)), "version": kernel.version}


def build_disk(image: Image, resolved: ResolvedSource, init: Path, out: Path) -> dict[str, Any]:
    """The disk's files in `out` (cache/disks/…), and the receipt."""
    cache = out.parents[2]
    return disk_receipt(make_disk(image, out, init=init.read_bytes(), cache=cache, digest=resolved.digest))


def disk_receipt(disk: Disk) -> dict[str, Any]:
    return {
        "size": disk.packed.index.disk_size,
        "digest": str(disk.packed.index.disk_digest()),
        "blob": {"digest": str(disk.packed.blob_digest), "size": disk.packed.blob_size},
        "slots": [{"name": slot.name, "offset": slot.offset, "length": slot.length} for slot in disk.slots],
        "layers": [{"diff_id": layer.diff_id, "first_inode": layer.first} for layer in disk.layers],
        "uuid": disk.uuid,
        "process": disk.process.to_json(),
        "labels": dict(disk.labels),
        "source_digest": disk.source_digest,
        "chunks": {"new": disk.packed.new_chunks, "reused": disk.packed.reused_chunks},
        "writer": {"rootdisk": __version__, **frames.versions()},
    }


def pack(image: Image, directory: Path) -> dict[str, Any]:
    """The artifact's receipt: its manifest digest and key."""
    artifact = _artifact(image, directory)
    return {
        "digest": str(artifact.descriptor.digest),
        "size": sum(blob.descriptor.size for blob in artifact.blobs),
        "key": artifact.key_tag,
    }


def publish(image: Image, directory: Path) -> dict[str, Any]:
    """The artifact in every target under its version and its key's tag."""
    artifact = _artifact(image, directory)
    for reference in image.publish:
        target = open_target(reference, _options(image))
        try:
            push(artifact, target, (image.version, artifact.key_tag))
        finally:
            target.close()
    targets = [f"{reference.place}:{image.version}" for reference in image.publish]
    return {"digest": str(artifact.descriptor.digest), "targets": targets}


def push(artifact: Artifact, target: Any, tags: tuple[str, ...]) -> None:
    """Blobs that are not there yet, then the manifest."""
    for blob in artifact.blobs:
        if not target.has_blob(blob.descriptor):
            data = blob.data
            target.push_blob(blob.descriptor, data if isinstance(data, Path) else lambda data=data: iter([data]))
    target.push_manifest(artifact.manifest, OCI_MANIFEST, tags)


def _artifact(image: Image, directory: Path) -> Artifact:
    receipt = json.loads((directory / "disk.json").read_bytes())
    return assemble_disk(
        image,
        receipt,
        directory / BLOB,
        (directory / INDEX).read_bytes(),
        directory / "vmlinuz" if receipt["inputs"]["guest"].get("kernel") else None,
        directory / "initramfs" if receipt["inputs"]["guest"].get("initramfs") else None,
    )


def assemble_disk(
    image: Image, receipt: Mapping[str, Any], blob: Path, index: bytes, kernel: Path | None, initramfs: Path | None
) -> Artifact:
    """The artifact of a disk's receipt (with `key` and `inputs`), its files and its kernel."""
    local = image.source.kind != "registry"
    config = ArtifactConfig(
        layout_version=LAYOUT_VERSION,
        platform=image.platform,
        disk_size=receipt["size"],
        disk_digest=Digest.parse(receipt["digest"]),
        disk_uuid=receipt["uuid"],
        slots=tuple(SlotExtent(s["name"], s["offset"], s["length"]) for s in receipt["slots"]),
        process=Process.of(receipt["process"]),
        cmdline=CMDLINE if image.platform.architecture == "amd64" else CMDLINE.replace("ttyS0", "ttyAMA0"),
        memory_mib=image.memory >> 20,
        cpus=image.cpus,
        derivation_key=receipt["key"],
        inputs=receipt["inputs"],
        source="" if local else str(image.source),
        source_digest=receipt["source_digest"],
        writer=receipt["writer"],
        labels={**receipt["labels"], **image.labels},
        layers=tuple(LayerInodes(layer["diff_id"], layer["first_inode"]) for layer in receipt["layers"]),
    )
    disk = Blob.of_file(DISK_TYPE, blob, Digest.parse(receipt["blob"]["digest"]), receipt["blob"]["size"])
    return assemble(
        config,
        disk,
        Blob.of_bytes(CHUNKS_TYPE, index),
        Blob.of_bytes(KERNEL_TYPE, kernel.read_bytes()) if kernel else None,
        Blob.of_bytes(INITRAMFS_TYPE, initramfs.read_bytes()) if initramfs else None,
    )


def read_through(path: Path) -> int:
    """Read every inode, attribute and byte of the raw disk at `path`; how many names. BadInput names what is damaged."""
    from imagetool.ext4.reader import Reader

    count = 0
    with Reader.open(path) as reader:
        for _, node in reader.walk():
            count += 1
            reader.xattrs(node)
            if stat.S_ISLNK(node.mode):
                reader.target(node)
            elif stat.S_ISREG(node.mode):
                for _ in reader.data(node):
                    pass
    return count


def check(image: Image, directory: Path) -> None:
    """Boot the published artifact as a sandbox that only says `rootdisk`; RootdiskError where it does not."""
    reference = image.publish[0]
    command = [sys.executable, "-m", "runner", "boot", "--network", "none", "--timeout", "120"]
    command += ["--plain-http"] if image.plain_http else []
    command += ["--ca-file", str(image.ca_file)] if image.ca_file else []
    command += ["--entrypoint", "/.rootdisk/init", f"{reference.place}:{image.version}", "--", "--version"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode or "rootdisk" not in done.stdout:
        raise RootdiskError(f"{image.name} does not boot: {(done.stderr or done.stdout)[-500:].strip()}")
