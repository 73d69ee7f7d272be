"""Copy images and artifacts between registries, OCI layouts and archives, byte for byte. Every blob is verified."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from imagetool.progress import Report, silent
from imagetool.targets.open import open_target
from imagetool.targets.target import Target, push_blobs
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Digest, Index, Manifest
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.referrers import check_count, simple_manifest
from rootdisk.oci.repository import INDEX_MAX_DEPTH, RegistryOptions, Repository, blame
from rootdisk.places import open_mirrored, open_repository


def copy(
    source: str,
    destination: str,
    options: RegistryOptions | None = None,
    report: Report = silent,
    *,
    referrers: bool = True,
) -> Digest:
    """Copy `source` to `destination` and return the digest, which is unchanged. An index is copied with all its manifests.

    Attached files such as signatures are copied too, unless `referrers` is false. `source` may also be an oci-archive. Blobs
    that exist already are not sent again. The tag is written last.

    Raises:
        BadInput: A reference is not valid, or `destination` has a digest.
        RootdiskError: Something cannot be read or written.
    """
    from_, to = parse_reference(source), parse_reference(destination)
    if to.digest is not None:
        raise BadInput(f"{to}: a copy cannot choose its digest", "use a tag")
    with contextlib.ExitStack() as stack:
        repository: Repository
        if from_.kind == "oci-archive" and from_.path is not None:
            from imagetool.sources.archives import ArchiveRepository, TarArchive

            repository = ArchiveRepository(TarArchive.open(from_.path, from_.place))
        else:
            repository = open_mirrored(from_, options)
        stack.callback(repository.close)
        descriptor = repository.resolve(from_.name)
        target = open_target(to, options)
        stack.callback(target.close)
        mount = from_.repository if from_.kind == "registry" and from_.registry == to.registry else ""
        if referrers:
            copy_referrers(repository, to, target, descriptor, options, mount, report)
        return copy_manifest(repository, target, descriptor, (to.tag,), mount, report=report)


def copy_manifest(
    repository: Repository,
    target: Target,
    descriptor: Descriptor,
    tags: tuple[str, ...],
    mount: str = "",
    depth: int = 0,
    report: Report = silent,
    copied: set[Digest] | None = None,
) -> Digest:
    """Copy a manifest and its blobs from `repository` to `target`. Of an index, copy its manifests first, each once.

    `mount` is the name of `repository` if it is in the registry of the target, else "". `copied` has what was copied before.

    Raises:
        BadInput: Indexes are nested too deeply.
        Unsupported: It is neither a manifest nor an index.
    """
    raw = repository.manifest(descriptor)
    if descriptor.media_type in INDEX_TYPES:
        if depth == INDEX_MAX_DEPTH:
            raise BadInput(f"{descriptor.digest}: indexes are nested more than {INDEX_MAX_DEPTH} deep")
        copied = set() if copied is None else copied
        for child in Index.parse(raw).manifests:
            if child.digest not in copied:
                copied.add(child.digest)
                copy_manifest(repository, target, child, (), mount, depth + 1, report, copied)
    elif descriptor.media_type in MANIFEST_TYPES:
        manifest = Manifest.parse(raw)
        blobs = (manifest.config, *manifest.layers)
        push_blobs(
            target,
            [(blob, partial(repository.blob, blob)) for blob in blobs],
            mount,
            report,
            partial(blame, repository),
            repository.interrupt,
        )
    else:
        raise Unsupported(f"{descriptor.digest}: a manifest of type {descriptor.media_type!r:.120}")
    return target.push_manifest(raw, descriptor.media_type, tags)


def copy_referrers(
    repository: Repository,
    place: Reference,
    target: Target,
    descriptor: Descriptor,
    options: RegistryOptions | None = None,
    mount: str = "",
    report: Report = silent,
) -> None:
    """Copy everything attached to `descriptor`, and to the manifests of an index, to `target`, which `place` names.

    Call it before `descriptor` itself is copied, so that it is never visible without its signatures.
    """
    copied: set[Digest] = set()
    for subject in _listed(repository, descriptor, set()):
        _copy_attached(repository, target, subject, mount, report, copied)
        _copy_simple(repository, place, target, subject, options, mount)


def _listed(repository: Repository, descriptor: Descriptor, seen: set[Digest], depth: int = 0) -> Iterator[Digest]:
    """Yield the digests of all manifests in an index, then its own. What is in `seen` is passed over."""
    if descriptor.digest in seen:
        return
    seen.add(descriptor.digest)
    if descriptor.media_type in INDEX_TYPES and depth < INDEX_MAX_DEPTH:
        for child in Index.parse(repository.manifest(descriptor)).manifests:
            yield from _listed(repository, child, seen, depth + 1)
    yield descriptor.digest


def _copy_attached(
    repository: Repository, target: Target, subject: Digest, mount: str, report: Report, copied: set[Digest]
) -> None:
    """Copy referrers, and the referrers of each before it.

    A digest cannot be its own subject, but a registry may list anything, as deep as it likes: so each is copied once, and a
    chain of them is not a recursion.
    """
    waiting = [(subject, iter(repository.referrers(subject)))]
    attached: dict[Digest, Descriptor] = {}
    while waiting:
        parent, items = waiting[-1]
        item = next(items, None)
        if item is None:
            waiting.pop()
            if waiting:
                copy_manifest(repository, target, attached[parent], ("",), mount, report=report)
        elif item.digest not in copied and item.media_type in MANIFEST_TYPES:
            copied.add(item.digest)
            check_count(len(copied), subject)
            attached[item.digest] = item
            waiting.append((item.digest, iter(repository.referrers(item.digest))))


def _copy_simple(
    repository: Repository,
    place: Reference,
    target: Target,
    subject: Digest,
    options: RegistryOptions | None,
    mount: str,
) -> None:
    """Copy simple signatures. Those that the target already has are kept."""
    manifest = simple_manifest(repository, subject)
    if manifest is None:
        return
    from imagetool.targets.simple import push_simple  # seldom needed

    earlier = None
    if place.kind != "oci-archive":
        with contextlib.closing(open_repository(place, options)) as destination:
            earlier = simple_manifest(destination, subject)
    layers = [(layer, partial(repository.blob, layer)) for layer in manifest.layers]
    push_simple(target, subject, layers, earlier, mount, partial(blame, repository))
