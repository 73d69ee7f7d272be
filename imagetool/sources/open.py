"""Source images, wherever they are: registry, OCI layout or archive, Docker archive or daemon, or a bare tar.

with open_source("alpine:3.20", Platform.host()) as image:
    for layer in image.layers:
        inflate(layer.open(), …, crew, expected=layer.descriptor, diff_id=layer.diff_id)
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from imagetool.sources.content import PIECE_BYTES, pieces
from imagetool.sources.image_config import CONFIG_TYPES, ImageConfig, check_image, may_be_absent
from imagetool.tree.remarks import Remark
from rootdisk.compression import HEAD_BYTES, compression
from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.documents import (
    MANIFEST_MAX_BYTES,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Manifest,
    Platform,
    canonical_json,
)
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions, Repository, checked_blob, read_blob, resolve_chain
from rootdisk.places import open_mirrored
from rootdisk.text import printable

if TYPE_CHECKING:  # archives take a while to load, and few sources are any
    from imagetool.sources.archives import TarArchive
    from rootdisk.trust.judgement import Rule


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A layer. `open` yields its stored bytes, NOT verified: the inflater does that."""

    descriptor: Descriptor
    diff_id: Digest | None  # None only for a compressed bare tar
    open: Callable[[], Iterator[bytes]] = field(compare=False)
    bare: bool = False  # a tar that tar(1) made, and not a layer


class SourceImage(NamedTuple):
    """An image for one platform. Docker archives and plain tars have no manifest; it is made from their content."""

    manifest_digest: Digest
    manifest: Manifest
    config: ImageConfig
    layers: tuple[LayerBlob, ...]
    remarks: tuple[Remark, ...] = ()


@contextlib.contextmanager
def open_source(
    text: str, platform: Platform, options: RegistryOptions | None = None, rule: Rule | None = None
) -> Iterator[SourceImage]:
    """Open the image that `text` names, for exactly `platform`. Its layers can be read until the context ends.

    Raises:
        Refused: it is not signed as `rule` requires.
    """
    reference = parse_reference(text)
    if rule is not None and reference.kind not in ("registry", "oci", "oci-archive"):
        rule.judge((), ())  # no signature is attached to these
    with contextlib.ExitStack() as stack:
        if reference.kind == "tar":
            yield _bare_tar(reference, platform)
        elif reference.kind in ("docker-archive", "docker-daemon"):
            from imagetool.sources.archives import TarArchive

            where = str(reference)
            if reference.kind == "docker-daemon":
                from imagetool.sources.docker import save_image  # and with it http.client, which takes a while

                archive = TarArchive(save_image(reference), where)
            else:
                assert reference.path is not None
                archive = TarArchive.open(reference.path, where)
            stack.callback(archive.close)
            yield _docker(archive, reference.tag if reference.kind == "docker-archive" else "", platform)
        else:
            repository: Repository
            if reference.kind == "oci-archive":
                from imagetool.sources.archives import ArchiveRepository, TarArchive

                assert reference.path is not None
                archive = TarArchive.open(reference.path, reference.place)
                stack.callback(archive.close)
                repository = ArchiveRepository(archive)
            else:
                repository = open_mirrored(reference, options)
                stack.callback(repository.close)
            yield _from_repository(repository, reference, platform, rule)


def _from_repository(
    repository: Repository, reference: Reference, platform: Platform, rule: Rule | None
) -> SourceImage:
    def ask(_: Descriptor, raw: bytes) -> Platform | None:
        """The platform of a manifest by its config."""
        manifest = Manifest.parse(raw)
        if not _is_image(manifest):
            return None
        try:
            return ImageConfig.parse(read_blob(repository, manifest.config, MANIFEST_MAX_BYTES)).platform
        except BadInput:  # its type could be that of an image, its content is not
            return None

    chain = resolve_chain(repository, reference, platform, ask)
    if rule is not None:
        from rootdisk.artifact.signatures import signatures_of

        digests = [descriptor.digest for descriptor, _ in reversed(chain)]
        rule.judge((found for digest in digests for found in signatures_of(repository, digest)), digests)
    found, raw = chain[-1]
    manifest = Manifest.parse(raw)
    if not _is_image(manifest):
        kind = manifest.artifact_type or manifest.config.media_type
        raise BadInput(
            f"{reference}: not an image but {printable(kind, 120)}", "name an image that a container could run"
        )
    config = ImageConfig.parse(read_blob(repository, manifest.config, MANIFEST_MAX_BYTES))
    remarks = check_image(manifest, config, platform, str(reference), found.platform)

    def layer(descriptor: Descriptor, diff_id: Digest | None) -> LayerBlob:
        """Return a layer that is read when it is needed."""
        return LayerBlob(descriptor, diff_id, lambda: _layer_bytes(repository, descriptor))

    layers = tuple(layer(d, i) for d, i in zip(manifest.layers, config.diff_ids, strict=True))
    return SourceImage(found.digest, manifest, config, layers, remarks)


def _layer_bytes(repository: Repository, layer: Descriptor) -> Iterator[bytes]:
    """Yield a layer as `checked_blob` does. The error for one that is missing says so if its type allows that."""
    try:
        yield from checked_blob(repository, layer)
    except (BadInput, RegistryError) as err:
        if may_be_absent(layer) and (isinstance(err, BadInput) or err.status == 404):
            err.hint = f"layers of type {printable(layer.media_type, 120)} need not be where the image is: push it with all its layers"
        raise


def _is_image(manifest: Manifest) -> bool:
    """Decide by the media types; if they say too little, by the content of the config."""
    config = manifest.config.media_type
    return config in CONFIG_TYPES[:2] or (config in CONFIG_TYPES and not manifest.artifact_type)


def _docker(archive: TarArchive, tag: str, platform: Platform) -> SourceImage:
    from imagetool.sources.archives import DockerArchive

    image = DockerArchive(archive, tag)
    config = image.config
    remarks = image.remarks + check_image(image.manifest, config, platform, archive.where)

    def layer(descriptor: Descriptor, diff_id: Digest | None) -> LayerBlob:
        """Return a layer that is read when it is needed."""
        return LayerBlob(descriptor, diff_id, lambda: image.layer(descriptor))

    layers = tuple(layer(d, i) for d, i in zip(image.manifest.layers, config.diff_ids, strict=True))
    return SourceImage(image.digest, image.manifest, config, layers, remarks)


def _bare_tar(reference: Reference, platform: Platform) -> SourceImage:
    """A root file system in one tar, maybe compressed; an image with one layer and an empty config."""
    from imagetool.sources.archives import PLAIN_LAYER, open_regular

    path = reference.path
    assert path is not None
    digest, size, head = hashlib.sha256(), 0, b""
    with open_regular(path, str(reference)) as file:
        while piece := file.read(PIECE_BYTES):
            head = head or piece[:HEAD_BYTES]
            digest.update(piece)
            size += len(piece)
    layer = Descriptor(PLAIN_LAYER, Digest("sha256", digest.hexdigest()), size)
    diff_id = None if compression(head) else layer.digest
    config = ImageConfig(platform, (diff_id,))
    raw = canonical_json({"architecture": platform.architecture, "os": platform.os, "variant": platform.variant})
    manifest = Manifest(OCI_MANIFEST, "", Descriptor(OCI_CONFIG, Digest.of(raw), len(raw)), (layer,), {})
    blob = LayerBlob(layer, diff_id, lambda: pieces(path), bare=True)
    return SourceImage(Digest.of(canonical_json(manifest.to_json())), manifest, config, (blob,))
