"""One name for several platforms: an OCI index over artifacts or images that are published already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from imagetool.sources.image_config import ImageConfig
from imagetool.targets.copy import copy_manifest, copy_referrers
from imagetool.targets.open import open_target
from rootdisk.artifact.format import CONFIG_MAX_BYTES, CONFIG_TYPE, ArtifactConfig
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Digest,
    Index,
    Manifest,
    Platform,
    canonical_json,
)
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions, Repository, read_blob
from rootdisk.places import open_repository


def make_index(
    target: str,
    sources: Sequence[str],
    options: RegistryOptions | None = None,
    allow: Callable[[Digest], None] = lambda digest: None,
) -> Digest:
    """The index of `sources` as `target`, all of them copied beside it; its digest.

    A source may be an index itself: then what it lists is listed. BadInput where two are for one platform. `allow` is told the
    digest before the tag is written, and may raise.
    """
    to = parse_reference(target)
    if to.digest is not None or not to.tag:
        raise BadInput(f"{to}: an index needs a tag", "write registry/repository:tag or oci:DIR:TAG")
    entries: dict[Platform, Descriptor] = {}
    with contextlib.closing(open_target(to, options)) as place:
        for source in map(parse_reference, sources):
            with contextlib.closing(open_repository(source, options)) as repository:
                for found in _manifests(repository, source):
                    described = _described(repository, found)
                    assert described.platform is not None
                    if described.platform in entries:
                        raise BadInput(f"{source}: a second one for {described.platform}", "name each platform once")
                    entries[described.platform] = described
                    mount = source.repository if (source.kind, source.registry) == ("registry", to.registry) else ""
                    if source.place != to.place:
                        copy_referrers(repository, to, place, found, options, mount)
                    copy_manifest(repository, place, found, (), mount)
        listed = tuple(entries[platform] for platform in sorted(entries, key=str))
        raw = canonical_json(Index(OCI_INDEX, listed, {}).to_json())
        allow(Digest.of(raw))
        return place.push_manifest(raw, OCI_INDEX, (to.tag,))


def _manifests(repository: Repository, source: Reference) -> Sequence[Descriptor]:
    found = repository.resolve(source.name)
    if found.media_type in INDEX_TYPES:
        return Index.parse(repository.manifest(found)).manifests
    return (found,)


def _described(repository: Repository, found: Descriptor) -> Descriptor:
    """`found` with its platform and artifact type, as its own config says."""
    if found.media_type not in MANIFEST_TYPES:
        raise Unsupported(f"{found.digest}: a manifest of type {found.media_type!r:.120}", "indexes are not nested")
    manifest = Manifest.parse(repository.manifest(found))
    raw = read_blob(repository, manifest.config, CONFIG_MAX_BYTES)
    config = ArtifactConfig if manifest.config.media_type == CONFIG_TYPE else ImageConfig
    return found._replace(annotations={}, platform=config.parse(raw).platform, artifact_type=manifest.artifact_type)
