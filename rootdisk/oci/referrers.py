"""Referrers: manifests whose `subject` is another one, such as signatures and SBOMs; distribution-spec 1.1.

A registry lists them by its referrers API, or without that in the index that a tag of the subject's digest names. In a layout they are
entries of index.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Digest, Index, Manifest
from rootdisk.parsing.digests import HEX_SHA256

if TYPE_CHECKING:
    from rootdisk.oci.repository import Repository

REFERRERS_MAX = 1000  # of one manifest
# A tag of referrers has 64 digits of any digest; one of simple signatures has them all.
_TAG = re.compile(rf"(sha256-{HEX_SHA256}|sha512-[0-9a-f]{{64}}([0-9a-f]{{64}})?)(\.sig)?\Z")


def referrers_tag(subject: Digest) -> str:
    """Return the tag of the index of everything attached to `subject`; distribution-spec 1.1, "Referrers Tag Schema"."""
    return f"{subject.algorithm}-{subject.hex[:64]}"


def signatures_tag(subject: Digest) -> str:
    """Return the tag of the simple signatures of `subject`, as skopeo and cosign write it."""
    return f"{subject.algorithm}-{subject.hex}.sig"


def belongs_to_digest(tag: str) -> bool:
    """Tell whether `tag` is one of the two above: not a version of something."""
    return bool(_TAG.match(tag))


def check_count(count: int, subject: Digest) -> None:
    """Refuse a list that is too long.

    Raises:
        BadInput: More than REFERRERS_MAX are listed.
    """
    if count > REFERRERS_MAX:
        raise BadInput(f"{subject}: more than {REFERRERS_MAX} referrers are listed", "remove those that are not needed")


def of_type(descriptors: Iterable[Descriptor], artifact_type: str) -> tuple[Descriptor, ...]:
    """Keep those of `artifact_type` ("": all), each digest once."""
    different = {item.digest: item for item in descriptors if artifact_type in ("", item.artifact_type)}
    return tuple(different.values())


def in_layout(
    index: Index, ref_name: str, subject: Digest, artifact_type: str, read: Callable[[Digest], bytes]
) -> tuple[Descriptor, ...]:
    """List the referrers of `subject` in a layout: entries of index.json without a tag, or of the index with its tag.

    `ref_name` is the annotation that holds an entry's tag; `read` gives a manifest by its digest.
    """
    tag = referrers_tag(subject)
    descriptors: list[Descriptor] = []
    loose = [item for item in index.manifests if not item.annotations.get(ref_name)]
    check_count(len(loose), subject)
    for item in index.manifests:
        if item.media_type in INDEX_TYPES and item.annotations.get(ref_name) == tag:
            listed = Index.parse(read(item.digest)).manifests
            check_count(len(listed), subject)
            descriptors += listed
    for item in loose:
        if item.media_type not in MANIFEST_TYPES:
            continue
        manifest = Manifest.parse(read(item.digest))
        if manifest.subject is not None and manifest.subject.digest == subject:
            kind = manifest.artifact_type or manifest.config.media_type
            descriptors.append(Descriptor(item.media_type, item.digest, item.size, artifact_type=kind))
    return of_type(descriptors, artifact_type)


def simple_manifest(repository: Repository, subject: Digest) -> Manifest | None:
    """Return the manifest of the simple signatures of `subject`, or None."""
    tag = signatures_tag(subject)
    try:
        descriptor = repository.resolve(tag)
    except RegistryError as err:
        if err.status != 404:
            raise
        return None
    except BadInput:  # a layout's way to say that it does not have the tag
        return None
    if descriptor.media_type not in MANIFEST_TYPES:
        return None
    return Manifest.parse(repository.manifest(descriptor))
