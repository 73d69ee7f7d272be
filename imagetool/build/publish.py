"""Publishing: an artifact gets its names in a layout or a registry, and names that others rely on do not move."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from imagetool.build.disk import registry
from imagetool.build.published import find_published
from imagetool.config.images import Image, Signing
from imagetool.content import Content
from imagetool.packing.manifest import Artifact, Blob
from imagetool.progress import Report, silent
from imagetool.receipts import check_file
from imagetool.targets.copy import copy_manifest, copy_referrers
from imagetool.targets.open import open_target
from imagetool.targets.target import Target, push_blobs, tag_taken
from rootdisk.artifact.format import key_tag
from rootdisk.errors import DigestMismatch, NotThere, RegistryError
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import Repository
from rootdisk.places import open_repository

if TYPE_CHECKING:
    from imagetool.build.cached_artifact import FoundArtifact
    from imagetool.signing.keys import SigningKey


def publish(
    artifact: Artifact,
    image: Image,
    targets: Sequence[Reference],
    tag: str,
    *,
    force: bool = False,
    report: Report = silent,
) -> None:
    """Publish the artifact in every target, under `tag` and its key's; one of several platforms under the latter alone.

    Raises:
        BadInput: the tag names another artifact, and not `force`.
        Damaged: a file is not what it was when it was made.
    """
    tags = (artifact.key_tag,) if image.group else (tag, artifact.key_tag)
    fixed = {place: () if image.group else fixed_tags(image, place, tag, force=force) for place in targets}
    refuse_to_move(image, fixed, artifact.descriptor.digest)
    for place in targets:
        with contextlib.closing(open_target(place, registry(image))) as target:
            push(artifact, target, (), report)
            sign_published(image, place, target, artifact.descriptor)
            target.push_manifest(artifact.manifest, OCI_MANIFEST, tags, fixed=fixed[place])


def publish_found(
    found: FoundArtifact,
    key: str,
    image: Image,
    targets: Sequence[Reference],
    tag: str,
    *,
    force: bool = False,
    report: Report = silent,
) -> None:
    """Publish an artifact that one of the targets has already."""
    tags = (key_tag(key),) if image.group else (tag, key_tag(key))
    fixed = {place: () if image.group else fixed_tags(image, place, tag, force=force) for place in targets}
    refuse_to_move(image, fixed, found.descriptor.digest)
    with contextlib.closing(open_repository(found.place, registry(image))) as repository:
        raw, media_type = repository.manifest(found.descriptor), found.descriptor.media_type
        for place in targets:
            with contextlib.closing(open_target(place, registry(image))) as target:
                if place.place != found.place.place:
                    copy_referrers(repository, place, target, found.descriptor, registry(image), report=report)
                    copy_manifest(repository, target, found.descriptor, (), report=report)
                sign_published(image, place, target, found.descriptor)
                target.push_manifest(raw, media_type, tags, fixed=fixed[place])


def publish_index(images: Sequence[Image], digests: Sequence[Digest], *, force: bool = False) -> Digest:
    """The index over artifacts that are published, in every place under their version; `images` are one group's."""
    from imagetool.targets.index import make_index

    first, made = images[0], []
    for place in first.publish:

        def sign(descriptor: Descriptor, place: Reference = place) -> None:
            if first.sign is not None:
                with contextlib.closing(open_target(place, registry(first))) as target:
                    sign_published(first, place, target, descriptor)

        sources = [f"{place.place}@{digest}" for digest in digests]
        fixed = bool(fixed_tags(first, place, first.version, force=force))
        made.append(make_index(f"{place.place}:{first.version}", sources, registry(first), sign, fixed=fixed))
    return made[0]


def sign_published(image: Image, place: Reference, target: Target, descriptor: Descriptor) -> None:
    """Sign what is in `place` and has no name yet, if the image says so: nobody sees the name without the signature."""
    if image.sign is None:
        return
    from imagetool.signing.sign import Formats, attach_provenance, sign_digest

    own = f"{place.place}:{image.version}" if place.kind == "registry" else ""
    named = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
    with contextlib.closing(open_repository(place, registry(image))) as repository:
        key, formats = signing_key(image.sign), cast("Formats", image.sign.format)
        name = image.sign.identity or own
        sign_digest(repository, target, named, key, formats=formats, identity=name)
        if image.sign.provenance and named.media_type == OCI_MANIFEST:
            attach_provenance(repository, target, named, key, name)


def signing_key(sign: Signing) -> SigningKey:
    """Open the key that signs."""
    from imagetool.signing.keys import KeyOptions, load_key

    return load_key(KeyOptions(sign.key, sign.passphrase_file, sign.key_command, sign.public_key))


def fixed_tags(image: Image, place: Reference, tag: str, *, force: bool) -> tuple[str, ...]:
    """The tags that do not move: a version that others may rely on. `latest` is there to be moved.

    A layout in the project's own cache is nobody else's; it can be deleted at any time.
    """
    private = place.path is not None and image.cache is not None and place.path.is_relative_to(image.cache)
    return () if force or private or tag == "latest" else (tag,)


def refuse_to_move(image: Image, fixed: Mapping[Reference, Sequence[str]], digest: Digest) -> None:
    """BadInput if a tag of `fixed` names something else than `digest` in its place: said before anything is sent."""
    for place, tags in fixed.items():
        for tag in tags:
            found = find_published(place, image, tag)
            if found is not None and found != digest:
                raise tag_taken(f"{place.place}:{tag}", found, digest)


def resolved_tag(repository: Repository, tag: str) -> Descriptor | None:
    """Resolve `tag`; None if it is missing, in a registry or a layout.

    Raises:
        RegistryError: the registry does not say, for want of credentials among other things.
    """
    try:
        return repository.resolve(tag)
    except RegistryError as err:
        if err.status == 404:
            return None
        raise
    except NotThere:
        return None


def push(
    artifact: Artifact,
    target: Target,
    tags: Sequence[str],
    report: Report = silent,
    *,
    fixed: Sequence[str] = (),
) -> None:
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
    target.push_manifest(artifact.manifest, OCI_MANIFEST, tags, fixed=fixed)
