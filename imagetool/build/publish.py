"""A packed disk becomes an artifact, and the artifact a published one; and the last check, a boot of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from imagetool.build.disk import registry
from imagetool.build.disk_cache import check_disk
from imagetool.config.images import Image
from imagetool.content import Content
from imagetool.packing.manifest import Artifact, Blob, assemble
from imagetool.packing.reuse import INDEX, blob_name
from imagetool.progress import Report, silent
from imagetool.receipts import check_file
from imagetool.targets.open import open_target
from imagetool.targets.target import Target, push_blobs
from rootdisk.artifact.format import (
    CHUNKS_TYPE,
    INITRAMFS_TYPE,
    KERNEL_TYPE,
    LAYOUT_VERSION,
    ArtifactConfig,
    LayerInodes,
    Process,
    SlotExtent,
)
from rootdisk.errors import BadInput, DigestMismatch, RegistryError, RootdiskError
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest
from rootdisk.oci.fields import Fields
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions, Repository
from rootdisk.places import open_repository
from rootdisk.system import process
from rootdisk.text import one_line

CMDLINE = "console=ttyS0 reboot=t panic=-1 quiet rdinit=/init"


def assembled(image: Image, packed: Path, boot: Path) -> Artifact:
    """The artifact of the kept disk in `packed`, with the kernel and initramfs of directory `boot`, if it has them."""
    receipt = check_disk(packed)
    kernel, initramfs = (
        boot / file if receipt["inputs"]["guest"].get(key) else None
        for key, file in (("kernel", "vmlinuz"), ("initramfs", "initramfs"))
    )
    for path, key in ((kernel, "kernel"), (initramfs, "initramfs")):
        if path is not None:
            check_file(path, receipt["inputs"]["guest"][key])
    local = image.source.kind != "registry"
    config = ArtifactConfig(
        layout_version=LAYOUT_VERSION,
        platform=image.platform,
        disk_size=receipt["size"],
        disk_digest=Digest.parse(receipt["digest"]),
        disk_uuid=receipt["uuid"],
        slots=tuple(SlotExtent(s["name"], s["offset"], s["length"]) for s in receipt["slots"]),
        process=Process.of(Fields.of(receipt["process"], "receipt: process")),
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
    blobs = receipt["blobs"]
    disk = [
        Blob.of_disk(packed / blob_name(n), Digest.parse(b["digest"]), b["size"], n if len(blobs) > 1 else None)
        for n, b in enumerate(blobs)
    ]
    return assemble(
        config,
        disk,
        Blob.of_bytes(CHUNKS_TYPE, (packed / INDEX).read_bytes()),
        Blob.of_bytes(KERNEL_TYPE, kernel.read_bytes()) if kernel else None,
        Blob.of_bytes(INITRAMFS_TYPE, initramfs.read_bytes()) if initramfs else None,
    )


def publish(
    artifact: Artifact,
    image: Image,
    places: tuple[Reference, ...],
    tag: str,
    *,
    force: bool = False,
    report: Report = silent,
) -> None:
    """The artifact in every place, under `tag` and its key's; one of several platforms under the latter alone."""
    tags = (artifact.key_tag,) if image.group else (tag, artifact.key_tag)
    for reference in places:
        if not force and not image.group:
            refuse_to_move(reference, tag, artifact.descriptor.digest, registry(image))
        target = open_target(reference, registry(image))
        try:
            push(artifact, target, tags, report)
        finally:
            target.close()


def publish_index(images: Sequence[Image], digests: Sequence[Digest], *, force: bool = False) -> Digest:
    """The index over artifacts that are published, in every place under their version; `images` are one group's."""
    from imagetool.targets.index import make_index

    first, made = images[0], []
    options = registry(first)
    for place in first.publish:

        def allow(digest: Digest, place: Reference = place) -> None:
            if not force:
                refuse_to_move(place, first.version, digest, options)

        sources = [f"{place.place}@{digest}" for digest in digests]
        made.append(make_index(f"{place.place}:{first.version}", sources, options, allow))
    return made[0]


def refuse_to_move(place: Reference, tag: str, digest: Digest, options: RegistryOptions) -> None:
    """BadInput where `tag` names something else in a registry: others rely on it. `latest` is there to be moved."""
    if place.kind != "registry" or tag == "latest":
        return
    repository = open_repository(place, options)
    try:
        found = resolved_tag(repository, tag)
        if found is not None and found.digest != digest:
            raise BadInput(
                f"{place.place}:{tag} is {found.digest.short} already, and this is {digest.short}",
                "raise the version, or move the tag with --force",
            )
    finally:
        repository.close()


def resolved_tag(repository: Repository, tag: str) -> Descriptor | None:
    """What `tag` names in a registry, None where there is no such tag for us."""
    try:
        return repository.resolve(tag)
    except RegistryError as err:
        # Many registries hide from strangers what is not there.
        if err.status in (401, 403, 404):
            return None
        raise


def push(artifact: Artifact, target: Target, tags: tuple[str, ...], report: Report = silent) -> None:
    """Blobs that are not there yet, then the manifest. Damaged if a file is not what it was when it was made."""

    def content(blob: Blob) -> Content:
        return blob.data if isinstance(blob.data, Path) else partial(iter, [blob.data])

    try:
        push_blobs(target, [(blob.descriptor, content(blob)) for blob in artifact.blobs], report=report)
    except DigestMismatch:
        for blob in artifact.blobs:  # is it ours that is not what it was?
            if isinstance(blob.data, Path):
                check_file(blob.data, blob.descriptor.digest)
        raise
    target.push_manifest(artifact.manifest, OCI_MANIFEST, tags)


def read_through(path: Path) -> int:
    """Read every inode, attribute and byte of the raw disk at `path`; how many names. BadInput names what is damaged."""
    from imagetool.ext4.reader import Reader

    count = 0
    with Reader.open(path) as reader:
        for _, node in reader.walk():
            count += 1
            reader.read_through(node)
    return count


def fetched(image: Image) -> Path:
    """The raw disk of the image's published artifact, in the runner's store; RootdiskError if it cannot be fetched."""
    done = process.run([*_runner("pull", image), "--json", f"{image.publish[0].place}:{image.version}"])
    if done.status:
        raise RootdiskError(one_line(done.complaint.strip().removeprefix("runner: ")))
    return Path(json.loads(done.text)["disk"])


def boot(image: Image) -> None:
    """Boot the published artifact as a sandbox that only says `rootdisk`; RootdiskError where it does not."""
    command = [*_runner("boot", image), "--network", "none", "--timeout", "120"]
    command += ["--entrypoint", "/.rootdisk/init", f"{image.publish[0].place}:{image.version}", "--", "--version"]
    done = process.run(command)
    if done.status or "rootdisk" not in done.text:
        raise RootdiskError(f"{image.name} does not boot: {(done.complaint or done.text)[-500:].strip()}")


def _runner(command: str, image: Image) -> list[str]:
    """A command of the runner on the image's registries and platform: the tools meet as their users do."""
    words = [sys.executable, "-m", "runner", command, "--platform", str(image.platform)]
    words += ["--plain-http"] if image.plain_http else []
    return words + (["--ca-file", str(image.ca_file)] if image.ca_file else [])
