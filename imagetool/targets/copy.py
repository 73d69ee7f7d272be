"""Copying images and artifacts between registries, OCI layouts and OCI archives, byte for byte, every blob verified."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from imagetool.progress import Report, silent
from imagetool.targets.open import open_target
from imagetool.targets.simple import push_simple
from imagetool.targets.target import Target, push_blobs
from rootdisk.artifact.signatures import simple_manifest
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Digest, Index, Manifest
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.referrers import check_count
from rootdisk.oci.repository import INDEX_MAX_DEPTH, RegistryOptions, Repository
from rootdisk.places import open_repository


def copy(
    source: str,
    destination: str,
    options: RegistryOptions | None = None,
    report: Report = silent,
    *,
    referrers: bool = True,
) -> Digest:
    """Copy what `source` names, an index with all it lists, to `destination`; the digest, which stays the same.

    What is attached to it goes too, such as signatures, unless `referrers` is false. `source` may be an oci-archive too.
    Blobs that are there are not sent again; the name is written last.
    """
    from_, to = parse_reference(source), parse_reference(destination)
    if to.digest is not None:
        raise BadInput(f"{to}: a copy cannot choose its digest", "name a tag")
    with contextlib.ExitStack() as stack:
        repository: Repository
        if from_.kind == "oci-archive" and from_.path is not None:
            from imagetool.sources.archives import ArchiveRepository, TarArchive

            repository = ArchiveRepository(TarArchive.open(from_.path, from_.place))
        else:
            repository = open_repository(from_, options)
        stack.callback(repository.close)
        found = repository.resolve(from_.name)
        target = open_target(to, options)
        stack.callback(target.close)
        mount = from_.repository if from_.kind == "registry" and from_.registry == to.registry else ""
        if referrers:
            copy_referrers(repository, to, target, found, options, mount, report)
        return copy_manifest(repository, target, found, (to.tag,), mount, report=report)


def copy_manifest(
    repository: Repository,
    target: Target,
    found: Descriptor,
    tags: tuple[str, ...],
    mount: str = "",
    depth: int = 0,
    report: Report = silent,
) -> Digest:
    """The manifest `found` and all it needs from `repository` to `target`; an index has its children copied first.

    `mount` is the name of `repository` in the target's own registry, if that is where it is.
    """
    raw = repository.manifest(found)
    if found.media_type in INDEX_TYPES:
        if depth == INDEX_MAX_DEPTH:
            raise BadInput(f"{found.digest}: indexes are nested more than {INDEX_MAX_DEPTH} deep")
        for child in Index.parse(raw).manifests:
            copy_manifest(repository, target, child, (), mount, depth + 1, report)
    elif found.media_type in MANIFEST_TYPES:
        manifest = Manifest.parse(raw)
        blobs = (manifest.config, *manifest.layers)
        push_blobs(target, [(blob, partial(repository.blob, blob)) for blob in blobs], mount, report)
    else:
        raise Unsupported(f"{found.digest}: a manifest of type {found.media_type!r:.120}")
    return target.push_manifest(raw, found.media_type, tags)


def copy_referrers(
    repository: Repository,
    place: Reference,
    target: Target,
    found: Descriptor,
    options: RegistryOptions | None = None,
    mount: str = "",
    report: Report = silent,
) -> None:
    """Copy what is attached to `found`, and to all that it lists, to `target`, which `place` names.

    It may come before `found` itself, so that nobody sees that without its signatures.
    """
    copied: set[Digest] = set()
    for subject in _listed(repository, found):
        _copy_attached(repository, target, subject, mount, report, copied)
        _copy_simple(repository, place, target, subject, options, mount)


def _listed(repository: Repository, found: Descriptor, depth: int = 0) -> Iterator[Digest]:
    if found.media_type in INDEX_TYPES and depth < INDEX_MAX_DEPTH:
        for child in Index.parse(repository.manifest(found)).manifests:
            yield from _listed(repository, child, depth + 1)
    yield found.digest


def _copy_attached(
    repository: Repository, target: Target, subject: Digest, mount: str, report: Report, copied: set[Digest]
) -> None:
    """Copy referrers, and their own first; a digest cannot be its own subject, so this ends."""
    for item in repository.referrers(subject):
        if item.digest in copied or item.media_type not in MANIFEST_TYPES:
            continue
        copied.add(item.digest)
        check_count(len(copied), subject)
        _copy_attached(repository, target, item.digest, mount, report, copied)
        copy_manifest(repository, target, item, ("",), mount, report=report)


def _copy_simple(
    repository: Repository,
    place: Reference,
    target: Target,
    subject: Digest,
    options: RegistryOptions | None,
    mount: str,
) -> None:
    """Copy simple signatures; those that are at the target already stay."""
    manifest = simple_manifest(repository, subject)
    if manifest is None:
        return
    earlier = None
    if place.kind != "oci-archive":
        with contextlib.closing(open_repository(place, options)) as there:
            earlier = simple_manifest(there, subject)
    layers = [(layer, partial(repository.blob, layer)) for layer in manifest.layers]
    push_simple(target, subject, layers, earlier, mount)
