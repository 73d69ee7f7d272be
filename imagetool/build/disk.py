"""Build pipeline: turn a source image into a packed or raw disk.

`make_disk` is the whole conversion. Around it: imagetool/guest/ makes init, kernel and initramfs, disk_cache.py keeps
packed disks, artifact.py makes artifacts of them, and publish.py publishes those.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from imagetool.build import derivation, layer_data
from imagetool.build.layer_locks import LayerLocks
from imagetool.config.images import Image
from imagetool.ext4.plan import DiskOptions, Plan, plan, write_disk
from imagetool.layout.additions import Additions, Owner, add
from imagetool.layout.fitting import fit
from imagetool.packing.early_frames import EarlyFrames
from imagetool.packing.pack import Packed, pack, worker_count
from imagetool.packing.reuse import TREE, Earlier
from imagetool.progress import Report, silent
from imagetool.sources.image_config import ImageConfig
from imagetool.sources.open import LayerBlob, SourceImage, open_source
from imagetool.tree.merge import merge, put_on
from imagetool.tree.model import BytesSource, File, Source, Tree
from imagetool.tree.remarks import Remark, refuse
from rootdisk.artifact.format import Process, SlotExtent, labels_of
from rootdisk.artifact.layers import LayerInodes
from rootdisk.artifact.policies import rule_for
from rootdisk.artifact.verity import Verity
from rootdisk.durable import atomic_write
from rootdisk.errors import BadInput
from rootdisk.oci.fields import Fields
from rootdisk.oci.repository import RegistryOptions
from rootdisk.parsing.ids import check_user
from rootdisk.system.crew import Crew
from rootdisk.system.memory import keep_buffers

# RFC 9562, version 4, the same on all disks. Every metadata checksum starts from it: if each image or version had its own,
# no metadata chunk could be reused. It could not identify a disk either, since the copy of each sandbox has the same.
DISK_UUID = "971bd09b-26f4-42b3-be09-30f5186d89c1"


class Disk(NamedTuple):
    """A packed disk and what its artifact's config says about it."""

    packed: Packed
    slots: tuple[SlotExtent, ...]
    layers: tuple[LayerInodes, ...]
    uuid: str
    process: Process
    labels: Mapping[str, str]
    source_digest: str
    remarks: tuple[Remark, ...] = ()  # what was changed or left out
    verity: Verity | None = None
    boot_chunks: tuple[int, ...] = ()  # numbers, in the order of the boot trace


def open_image(image: Image) -> contextlib.AbstractContextManager[SourceImage]:
    """Open the image's source for its platform; check the policy for it if the image has `source_policy`."""
    rule = rule_for(image.source, image.policy) if image.source_policy else None
    return open_source(str(image.source), image.platform, registry(image), rule)


def registry(image: Image) -> RegistryOptions:
    """Return how to reach the registries of an image."""
    return RegistryOptions(plain_http=image.plain_http, ca_file=image.ca_file)


@contextlib.contextmanager
def _frugal() -> Iterator[None]:
    """Keep only small parts of freed memory, and turn the garbage collector off.

    Nothing here refers to itself, and the collector would visit every inode again and again. It is turned on when the tree
    is gone.
    """
    keep_buffers()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_frugal()
def make_disk(
    image: Image,
    source: SourceImage,
    init: bytes,
    out: Path,
    cache: Path,
    locks: LayerLocks,
    report: Report = silent,
    threads: int | None = None,
) -> Disk:
    """Build the disk of `image` and pack it into the empty directory `out`, with `threads` threads.

    `init` is the guest's init program. Blobs and chunks of earlier disks under `cache`/disks are reused; `locks` keeps
    other processes from making the same layers.

    Raises:
        BadInput: the image is strict, and a part of the source had to be changed or left out.
    """
    process = _process(image, source)
    with (
        Crew(worker_count(threads)) as crew,
        EarlyFrames(layer_data.work_folder(cache), crew) as early,
        layer_data.open_layers(source, cache, crew, _own_layer(image), report, early) as layers,
    ):
        sources, disk_plan, remarks = _plan(image, source, layers, init, cache, locks)
        # Only now: what another process has made, while this one waited for its layers, is among them.
        with Earlier(sorted((cache / "disks").glob("[0-9a-f]*"))) as earlier:
            packed = pack(
                disk_plan,
                sources,
                out,
                crew,
                earlier=earlier,
                early=early,
                max_blob=image.max_blob,
                progress=report("packing"),
            )
    tree = None
    if image.verity:
        from imagetool.packing.verity import make_tree

        tree = make_tree(out, packed.index, len(packed.parts))
        atomic_write(out / TREE, tree.blob)
    return Disk(
        packed,
        disk_plan.slots,
        disk_plan.layers,
        DISK_UUID,
        process,
        source.config.labels,
        str(source.manifest_digest),
        remarks,
        tree.verity if tree else None,
        _boot_chunks(image, out, packed),
    )


def _boot_chunks(image: Image, folder: Path, packed: Packed) -> tuple[int, ...]:
    """Return the chunks that the boot trace of the image names, in its order."""
    if not image.boot_trace:
        return ()
    from imagetool.ext4.reader import Reader
    from imagetool.packing.boot_trace import PackedBlobs, chunks_of
    from rootdisk.artifact.disk import FramedDisk

    with Reader(FramedDisk(PackedBlobs(folder, len(packed.parts)), packed.index)) as reader:
        return chunks_of(reader, packed.index, image.boot_trace)


@_frugal()
def make_raw(
    image: Image, source: SourceImage, init: bytes | None, out: Path, cache: Path, report: Report = silent
) -> tuple[Remark, ...]:
    """Write the raw, sparse disk of `image` as the new file `out`. Without `init`, nothing is added to the image.

    Return remarks about what was changed or left out.
    """
    if init is not None:
        _process(image, source)
    with (
        Crew(worker_count(None)) as crew,
        layer_data.open_layers(source, cache, crew, _own_layer(image), report) as layers,
    ):
        sources, disk_plan, remarks = _plan(image, source, layers, init, cache)
        write_disk(disk_plan, sources, out, report("writing"))
    return remarks


@contextlib.contextmanager
def planned(
    image: Image, source: SourceImage, cache: Path, report: Report = silent
) -> Iterator[tuple[Plan, list[Source]]]:
    """Yield the plan of the image's disk without what we add, and the sources of its data, which are open meanwhile."""
    with (
        Crew(worker_count(None)) as crew,
        layer_data.open_layers(source, cache, crew, None, report) as layers,
        _frugal(),
    ):
        sources, disk_plan, _ = _plan(image, source, layers, None, cache)
        yield disk_plan, sources


def _process(image: Image, source: SourceImage) -> Process:
    """Return the process that the disk will run. What no runner would read is refused before a layer is read."""
    process = image.process.apply(source.config.process)
    check_user(process.user, "USER")
    labels = {**source.config.labels, **image.labels}
    fields = Fields({"process": process.to_json(), "labels": labels}, "image config")
    labels_of(fields)
    return Process.of(fields.inner("process"))


def _plan(
    image: Image,
    source: SourceImage,
    layers: list[layer_data.LayerData],
    init: bytes | None,
    cache: Path,
    locks: LayerLocks | None = None,
) -> tuple[list[Source], Plan, tuple[Remark, ...]]:
    """Merge the layers, add our files and plan the disk. Return the sources of its data, the plan, and remarks."""
    tree = _merge(image, layers, locks)
    remarks = (*source.remarks, *fit(tree, lambda file: _read(layers, file)))
    if image.strict:
        refuse(remarks)
    sources: list[Source] = list(layers)
    if init is not None:
        additions = _additions(image, source.config, init)
        sources.append(BytesSource(add(tree, lambda file: _read(layers, file), additions)))
    diff_ids = [layer.diff_id for layer in tree.layers if not layer.names]
    identity = derivation.derivation_key({"writer": derivation.WRITER_VERSION, "uuid": DISK_UUID, "layers": diff_ids})
    kept = layer_data.kept_directories(cache, identity)
    uuid = bytes.fromhex(DISK_UUID.replace("-", ""))
    disk_plan = plan(tree, DiskOptions(image.size, uuid, directories=kept, identity=identity.encode()))
    if disk_plan.directories is not kept:
        layer_data.keep_directories(cache, identity, disk_plan.directories)
    return sources, disk_plan, remarks


def _own_layer(image: Image) -> LayerBlob | None:
    """Return the files that images.toml adds and removes as a layer; None if there are none."""
    if not image.files and not image.remove:
        return None
    from imagetool.layout.own_files import own_layer

    return own_layer(image.files, image.remove)


def _merge(image: Image, layers: list[layer_data.LayerData], locks: LayerLocks | None) -> Tree:
    """Merge each layer as soon as it is scanned."""
    has_own = bool(image.files or image.remove)
    with contextlib.closing(layer_data.scan_layers(layers, locks)) as scanned:
        tree = merge(itertools.islice(scanned, len(layers) - has_own))
        if has_own:
            from imagetool.layout.own_files import check_removed

            check_removed(tree, image.remove)
            put_on(tree, *next(scanned))
    return tree


def _additions(image: Image, config: ImageConfig, init: bytes) -> Additions:
    return Additions(
        init=init,
        process=image.process.apply(config.process),
        env=(*config.env, *image.env),
        tls_ca=image.tls_ca,
        tls_client=image.tls_client,
        owners=image.owners,
        file_owners=tuple(Owner.parse(file.path, file.owner) for file in image.files if file.owner),
    )


def _read(layers: list[layer_data.LayerData], file: File) -> bytes:
    if file.segments is not None:
        raise BadInput("an account file of the image is a sparse file", "store it in the image without holes")
    return layers[file.layer].read_kept(file.offset, file.size)
