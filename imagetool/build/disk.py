"""The way of the data: a source image becomes a packed disk, or a raw one.

`make_disk` is the whole conversion in one function. What leads to it and away from it: imagetool/guest/ makes init, kernel
and initramfs, imagetool/build/disk_cache.py keeps packed disks, imagetool/build/publish.py makes and publishes artifacts.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from imagetool.build import derivation
from imagetool.build import layer_data as layer_data
from imagetool.config.images import Image
from imagetool.ext4.plan import DiskOptions, Plan, plan, write_disk
from imagetool.layout.additions import Additions, Owner, add
from imagetool.layout.fitting import fit
from imagetool.packing.pack import Packed, pack
from imagetool.packing.reuse import Earlier
from imagetool.progress import Report, silent
from imagetool.sources.image_config import ImageConfig
from imagetool.sources.open import LayerBlob, SourceImage, open_source
from imagetool.tree.index import TarIndex
from imagetool.tree.merge import merge, put_on
from imagetool.tree.model import BytesSource, File, Source, Tree
from imagetool.tree.remarks import Remark, refuse
from rootdisk.artifact.format import LayerInodes, Process, SlotExtent
from rootdisk.artifact.policies import rule_for
from rootdisk.errors import BadInput
from rootdisk.ids import check_user
from rootdisk.oci.repository import RegistryOptions

# RFC 9562, version 4, the same on all disks. Every metadata checksum starts from it, so one of its own for each image or
# version would make all metadata chunks others; and it names no disk: each sandbox's copy has the same anyway.
DISK_UUID = "971bd09b-26f4-42b3-be09-30f5186d89c1"


class Disk(NamedTuple):
    """A packed disk and what its artifact's config says of it."""

    packed: Packed
    slots: tuple[SlotExtent, ...]
    layers: tuple[LayerInodes, ...]
    uuid: str
    process: Process
    labels: Mapping[str, str]
    source_digest: str
    remarks: tuple[Remark, ...] = ()  # what was changed or left out


def opened(image: Image) -> contextlib.AbstractContextManager[SourceImage]:
    """The image's source, for its platform; the policy is asked about it if the image says so."""
    rule = rule_for(image.source, image.policy) if image.source_policy else None
    return open_source(str(image.source), image.platform, registry(image), rule)


def registry(image: Image) -> RegistryOptions:
    """Return how to reach the registries of an image."""
    return RegistryOptions(plain_http=image.plain_http, ca_file=image.ca_file)


def make_disk(
    image: Image,
    source: SourceImage,
    init: bytes,
    out: Path,
    cache: Path,
    report: Report = silent,
    threads: int | None = None,
) -> Disk:
    """The disk of `image`, packed into the empty directory `out` by `threads`; `init` is the guest's.

    Blobs and chunks of earlier disks under `cache`/disks are used again.

    Raises:
        BadInput: The image is strict, and something of the source had to be changed or left out.
    """
    process = _process(image, source)
    with (
        layer_data.opened(source, cache, _own_layer(image), report) as layers,
        Earlier(sorted((cache / "disks").glob("[0-9a-f]*"))) as earlier,
        _no_cycles(),
    ):
        sources, made, remarks = _planned(image, source, layers, init, cache)
        packed = pack(
            made, sources, out, earlier=earlier, max_blob=image.max_blob, threads=threads, progress=report("packing")
        )
    digest = str(source.manifest_digest)
    return Disk(packed, made.slots, made.layers, DISK_UUID, process, source.config.labels, digest, remarks)


def make_raw(
    image: Image, source: SourceImage, init: bytes | None, out: Path, cache: Path, report: Report = silent
) -> tuple[Remark, ...]:
    """Only the raw, sparse disk of `image`, as the new file `out`; without `init` its own tree and nothing added.

    Returns what was changed or left out.
    """
    if init is not None:
        _process(image, source)
    with layer_data.opened(source, cache, _own_layer(image), report) as layers, _no_cycles():
        sources, made, remarks = _planned(image, source, layers, init, cache)
        write_disk(made, sources, out, report("writing"))
    return remarks


def _process(image: Image, source: SourceImage) -> Process:
    """Return the process that runs. An invalid user is refused before a layer is read."""
    process = image.process.apply(source.config.process)
    check_user(process.user, "USER")
    return process


def _planned(
    image: Image, source: SourceImage, layers: list[layer_data.LayerData], init: bytes | None, cache: Path
) -> tuple[list[Source], Plan, tuple[Remark, ...]]:
    """Layers to tree, additions into the tree, tree to plan; where the plan's bytes are read from; and remarks."""
    tree = _merged(image, layers)
    remarks = (*source.remarks, *fit(tree, lambda file: _read(layers, file)))
    if image.strict:
        refuse(remarks)
    sources: list[Source] = list(layers)
    if init is not None:
        additions = _additions(image, source.config, init)
        sources.append(BytesSource(add(tree, lambda file: _read(layers, file), additions)))
    layers_of = [layer.diff_id for layer in tree.layers if not layer.names]
    identity = derivation.derivation_key({"writer": derivation.WRITER_VERSION, "uuid": DISK_UUID, "layers": layers_of})
    kept = layer_data.kept_directories(cache, identity)
    uuid = bytes.fromhex(DISK_UUID.replace("-", ""))
    made = plan(tree, DiskOptions(image.size, uuid, directories=kept, identity=identity.encode()))
    if made.directories is not kept:
        layer_data.keep_directories(cache, identity, made.directories)
    return sources, made, remarks


def _own_layer(image: Image) -> LayerBlob | None:
    """images.toml's own files, and what it removes, as a layer; None without any."""
    if not image.files and not image.remove:
        return None
    from imagetool.layout.own_files import own_layer

    return own_layer(image.files, image.remove)


def _merged(image: Image, layers: list[layer_data.LayerData]) -> Tree:
    found = layer_data.scanned(layers)
    if not image.files and not image.remove:
        return merge(_taken(found))
    from imagetool.layout.own_files import check_removed

    own = found.pop()
    tree = merge(_taken(found))
    check_removed(tree, image.remove)
    put_on(tree, *own)
    return tree


def _taken(found: list[tuple[str, TarIndex]]) -> Iterator[tuple[str, TarIndex]]:
    """Each index, no longer kept: the tree takes the memory."""
    found.reverse()
    while found:
        yield found.pop()


@contextlib.contextmanager
def _no_cycles() -> Iterator[None]:
    """The collector of cycles off: there are none here, and it looks at every inode again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
        raise BadInput("an account file of the image is sparse", "write it plainly")
    return layers[file.layer].read_kept(file.offset, file.size)
