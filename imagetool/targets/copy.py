"""Copying images and artifacts between registries, OCI layouts and OCI archives, byte for byte, every blob verified."""

from __future__ import annotations

import contextlib
from functools import partial

from imagetool.progress import Report, silent
from imagetool.targets.open import open_target
from imagetool.targets.target import Target, push_blobs
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Digest, Index, Manifest
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import INDEX_MAX_DEPTH, RegistryOptions, Repository
from rootdisk.places import open_repository


def copy(source: str, destination: str, options: RegistryOptions | None = None, report: Report = silent) -> Digest:
    """Copy what `source` names, an index with all it lists, to `destination`; the digest, which stays the same.

    `source` may be an oci-archive too. Blobs that are there are not sent again; the name is written last.
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
