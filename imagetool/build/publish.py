"""Publishing: give an artifact its tags in a layout or a registry. Tags that others rely on do not move."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from imagetool.build.disk import registry
from imagetool.build.published import find_published
from imagetool.config.images import Image, Signing
from imagetool.packing.manifest import Artifact
from imagetool.progress import Report, silent
from imagetool.receipts import check_file
from imagetool.targets.copy import copy_manifest, copy_referrers
from imagetool.targets.open import open_target
from imagetool.targets.target import Target, push_blobs, tag_taken
from rootdisk.artifact.format import key_tag
from rootdisk.artifact.published import PublishedArtifact
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
    """Publish the artifact in every target, under `tag` and the tag of its key. One of several platforms gets only the latter.

    Raises:
        BadInput: the tag names another artifact, and `force` is false.
        Damaged: a file has changed since it was made.
    """
    tags = (artifact.key_tag,) if image.group else (tag, artifact.key_tag)
    fixed = {place: () if image.group else fixed_tags(image, place, tag, force=force) for place in targets}
    refuse_to_move(image, fixed, artifact.descriptor.digest)
    for place in targets:
        with contextlib.closing(open_target(place, registry(image))) as target:
            push(artifact, target, (), report)
            if image.sbom:
                from imagetool.build.bill import attach_bill, unpublished

                attach_bill(target, artifact.descriptor, unpublished(artifact), image.sbom)
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
    """Publish an artifact that one of the targets already has."""
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
                if image.sbom:
                    from imagetool.build.bill import attach_bill

                    attach_bill(
                        target, found.descriptor, PublishedArtifact(repository, found.descriptor, raw), image.sbom
                    )
                sign_published(image, place, target, found.descriptor)
                target.push_manifest(raw, media_type, tags, fixed=fixed[place])


def publish_index(images: Sequence[Image], digests: Sequence[Digest], *, force: bool = False) -> Digest:
    """Publish the index over published artifacts, in every place, tagged with their version. `images` are those of one group."""
    from imagetool.targets.index import make_index

    first, indexes = images[0], []
    for place in first.publish:

        def sign(descriptor: Descriptor, place: Reference = place) -> None:
            """Sign the index."""
            if first.sign is not None:
                with contextlib.closing(open_target(place, registry(first))) as target:
                    sign_published(first, place, target, descriptor)

        sources = [f"{place.place}@{digest}" for digest in digests]
        fixed = bool(fixed_tags(first, place, first.version, force=force))
        indexes.append(make_index(f"{place.place}:{first.version}", sources, registry(first), sign, fixed=fixed))
    return indexes[0]


def sign_published(image: Image, place: Reference, target: Target, subject: Descriptor) -> None:
    """Sign an artifact before it is tagged, if the image says so: nobody sees the tag without the signature."""
    if image.sign is None:
        return
    from imagetool.signing.sign import Formats, attach_provenance, sign_digest

    default_name = f"{place.place}:{image.version}" if place.kind == "registry" else ""
    with contextlib.closing(open_repository(place, registry(image))) as repository:
        key, formats = signing_key(image.sign), cast("Formats", image.sign.format)
        name = image.sign.identity or default_name
        sign_digest(repository, target, subject, key, formats=formats, identity=name)
        if image.sign.provenance and subject.media_type == OCI_MANIFEST:
            attach_provenance(repository, target, subject, key, name)


def signing_key(sign: Signing) -> SigningKey:
    """Open the key that `sign` names."""
    from imagetool.signing.keys import KeyOptions, load_key

    return load_key(KeyOptions(sign.key, sign.passphrase_file, sign.key_command, sign.public_key))


def fixed_tags(image: Image, place: Reference, tag: str, *, force: bool) -> tuple[str, ...]:
    """Return the tags that do not move: a version that others may rely on. `latest` may move.

    Nobody else relies on a layout in the project's own cache: it can be deleted at any time.
    """
    private = place.path is not None and image.cache is not None and place.path.is_relative_to(image.cache)
    return () if force or private or tag == "latest" else (tag,)


def refuse_to_move(image: Image, fixed: Mapping[Reference, Sequence[str]], digest: Digest) -> None:
    """Raise BadInput if a tag of `fixed` names another manifest than `digest` in its place. Done before anything is sent."""
    for place, tags in fixed.items():
        for tag in tags:
            published = find_published(place, image, tag)
            if published is not None and published != digest:
                raise tag_taken(f"{place.place}:{tag}", published, digest)


def resolved_tag(repository: Repository, tag: str) -> Descriptor | None:
    """Resolve `tag`; None if it is missing, in a registry or a layout.

    Raises:
        RegistryError: the registry does not answer the question, for example because credentials are missing.
    """
    try:
        return repository.resolve(tag)
    except RegistryError as err:
        if err.status == 404:
            return None
        raise
    except NotThere:
        return None


def push(artifact: Artifact, target: Target, tags: Sequence[str], report: Report = silent) -> None:
    """Push the missing blobs, then the manifest.

    Raises:
        Damaged: a file has changed since it was made.
    """
    try:
        push_blobs(target, artifact.blobs, report=report)
    except DigestMismatch:
        for blob in artifact.blobs:  # has one of our files changed?
            if isinstance(blob.data, Path):
                check_file(blob.data, blob.descriptor.digest)
        raise
    target.push_manifest(artifact.manifest, OCI_MANIFEST, tags)
