"""Write an OCI index over published artifacts or images: a single tag for several platforms."""

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
    before: Callable[[Descriptor], None] = lambda descriptor: None,
    *,
    fixed: bool = False,
) -> Digest:
    """Copy `sources` to the repository of `target` and write an index of them as `target`. Return its digest.

    If a source is an index, its manifests are listed. `before` is called with the index before the tag is written, and may
    raise to prevent that. With `fixed` the tag does not move.

    Raises:
        BadInput: `target` has no tag, or it is `fixed` and names something else; or two sources have the same platform.
        Unsupported: A source is not an image or artifact.
    """
    to = parse_reference(target)
    if to.digest is not None or not to.tag:
        raise BadInput(f"{to}: an index needs a tag", "write registry/repository:tag or oci:DIR:TAG")
    for source in map(parse_reference, sources):  # all are there before anything is written
        with contextlib.closing(open_repository(source, options)) as repository:
            repository.resolve(source.name)
    entries: dict[Platform, Descriptor] = {}
    with contextlib.closing(open_target(to, options)) as place:
        for source in map(parse_reference, sources):
            with contextlib.closing(open_repository(source, options)) as repository:
                for descriptor in _manifests(repository, source):
                    described = _describe(repository, descriptor)
                    assert described.platform is not None
                    if described.platform in entries:
                        raise BadInput(
                            f"{source} is a second image for {described.platform}", "use one image for each platform"
                        )
                    entries[described.platform] = described
                    mount = source.repository if (source.kind, source.registry) == ("registry", to.registry) else ""
                    if source.place != to.place:
                        copy_referrers(repository, to, place, descriptor, options, mount)
                    copy_manifest(repository, place, descriptor, (), mount)
        listed = tuple(entries[platform] for platform in sorted(entries, key=str))
        raw = canonical_json(Index(OCI_INDEX, listed, {}).to_json())
        before(Descriptor(OCI_INDEX, Digest.of(raw), len(raw)))
        return place.push_manifest(raw, OCI_INDEX, (to.tag,), fixed=(to.tag,) if fixed else ())


def _manifests(repository: Repository, source: Reference) -> Sequence[Descriptor]:
    """Return the manifest that `source` names, or those of the index that it names."""
    descriptor = repository.resolve(source.name)
    if descriptor.media_type in INDEX_TYPES:
        return Index.parse(repository.manifest(descriptor)).manifests
    return (descriptor,)


def _describe(repository: Repository, descriptor: Descriptor) -> Descriptor:
    """Return `descriptor` with the platform of its config and its artifact type."""
    if descriptor.media_type not in MANIFEST_TYPES:
        what = f"{descriptor.digest}: a manifest of type {descriptor.media_type!r:.120}"
        raise Unsupported(what, "nested indexes are not supported")
    manifest = Manifest.parse(repository.manifest(descriptor))
    raw = read_blob(repository, manifest.config, CONFIG_MAX_BYTES)
    config = ArtifactConfig if manifest.config.media_type == CONFIG_TYPE else ImageConfig
    return descriptor._replace(
        annotations={}, platform=config.parse(raw).platform, artifact_type=manifest.artifact_type
    )
