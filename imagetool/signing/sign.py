"""Sign what is published: verify all of it, sign its digests, attach the signatures.

A bundle is a referrer; a simple signature is a layer of the manifest with the tag `sha256-HEX.sig`. A digest that the key has
signed already, with the same reference, is not signed again: an artifact that is published each night does not grow.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import rootdisk
from imagetool.signing.keys import SigningKey
from imagetool.targets.attach import push_attached
from imagetool.targets.copy import copy_manifest
from imagetool.targets.layout import LayoutTarget
from imagetool.targets.open import open_target
from imagetool.targets.simple import push_simple
from imagetool.targets.target import Target
from rootdisk.artifact.format import ARTIFACT_TYPE
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.artifact.signatures import signatures_of
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Digest,
    Index,
    Manifest,
)
from rootdisk.oci.layout import REF_NAME
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.referrers import simple_manifest
from rootdisk.oci.repository import INDEX_MAX_DEPTH, RegistryOptions, Repository, blob_pieces
from rootdisk.places import open_repository
from rootdisk.trust.bundle import BUNDLE_TYPE, IN_TOTO_TYPE, SIGN_PREDICATE, Bundle, Statement, pre_authentication
from rootdisk.trust.judgement import Unusable
from rootdisk.trust.signatures import Claim, Format
from rootdisk.trust.simple import PAYLOAD_TYPE, SIGNATURE, Payload

Formats = Literal["bundle", "simple", "both"]
_BLOB_MAX_BYTES = 1 << 44


def sign(
    reference: Reference,
    key: SigningKey,
    options: RegistryOptions | None = None,
    *,
    formats: Formats = "bundle",
    identity: str = "",
    built: tuple[Digest, ...] = (),
) -> tuple[Digest, ...]:
    """Sign what `reference` names, an index with all that it lists; the digests that are signed.

    Every byte is verified first, except of what was `built` just now. The signature says that the digest is `identity`, "" means
    `reference` itself.

    Raises:
        BadInput: The reference names nothing that can be signed, or `identity` is missing.
        DigestMismatch: Something is damaged, so nothing is signed.
    """
    if reference.kind == "oci-archive":
        return _sign_archive(reference, key, formats, identity)
    name = identity or (_identity(reference) if reference.kind == "registry" else "")
    if identity:
        check_identity(identity)
    elif not name and formats != "bundle":
        raise BadInput(f"{reference}: a simple signature names a repository", "--identity registry/repository:tag")
    with (
        contextlib.closing(open_repository(reference, options)) as repository,
        contextlib.closing(open_target(reference, options)) as target,
    ):
        found = repository.resolve(reference.name)
        signed = {descriptor.digest: descriptor for descriptor in _verified(repository, found, built)}
        for descriptor in reversed(signed.values()):  # an index after what it lists
            sign_digest(repository, target, descriptor, key, formats=formats, identity=name)
    return tuple(signed)


def sign_digest(
    repository: Repository, target: Target, subject: Descriptor, key: SigningKey, *, formats: Formats, identity: str
) -> None:
    """Sign `subject`, which was just built or verified; `repository` is where `target` writes."""
    if not identity and formats != "bundle":
        raise BadInput(f"{subject.digest}: a simple signature names a repository", "name one as its identity")
    for one in ("bundle", "simple") if formats == "both" else (formats,):
        _attach(repository, target, subject, Claim(subject.digest, identity), key, one)


def _sign_archive(reference: Reference, key: SigningKey, formats: Formats, identity: str) -> tuple[Digest, ...]:
    """Sign in a layout beside the archive, which then takes its place."""
    assert reference.path is not None
    from imagetool.sources.archives import ArchiveRepository, TarArchive
    from imagetool.targets.archive import ArchiveTarget

    with (
        contextlib.closing(ArchiveRepository(TarArchive.open(reference.path, reference.place))) as archive,
        contextlib.closing(ArchiveTarget(reference.path, replace=True)) as target,
        contextlib.closing(LayoutTarget(target.layout)) as layout,
    ):
        for item in archive.index().manifests:
            copy_manifest(archive, layout, item, (item.annotations.get(REF_NAME, ""),))
        inside = reference._replace(kind="oci", path=target.layout)
        signed = sign(inside, key, formats=formats, identity=identity)
        target.finish()
    return signed


def check_identity(identity: str) -> None:
    """Refuse a reference that is not written in full."""
    found = parse_reference(identity)
    if found.kind != "registry" or found.digest is not None or identity not in (found.place, str(found)):
        raise BadInput(f"--identity {identity!r:.120}", "write registry/repository or registry/repository:tag, in full")


def _identity(reference: Reference) -> str:
    """Return the reference without a digest: what the signature is about is another field."""
    return reference.place if reference.digest is not None else f"{reference.place}:{reference.tag}"


def _verified(
    repository: Repository, found: Descriptor, built: tuple[Digest, ...], depth: int = 0
) -> Iterator[Descriptor]:
    """Yield `found` and what it lists, once every byte of it has been verified."""
    raw = repository.manifest(found)
    named = Descriptor(found.media_type, found.digest, len(raw))
    if found.media_type in INDEX_TYPES:
        if depth == INDEX_MAX_DEPTH:
            raise BadInput(f"{found.digest}: indexes are nested more than {INDEX_MAX_DEPTH} deep")
        yield named
        for child in Index.parse(raw).manifests:
            if child.platform is None or child.platform.os != "unknown":  # not an attestation of BuildKit
                yield from _verified(repository, child, built, depth + 1)
        return
    if found.media_type not in MANIFEST_TYPES:
        raise Unsupported(f"{found.digest}: a manifest of type {found.media_type!r:.120}", "only images are signed")
    manifest = Manifest.parse(raw)
    if found.digest not in built:
        for blob in (manifest.config, *manifest.layers):
            for _ in blob_pieces(repository, blob, _BLOB_MAX_BYTES):
                pass
        if manifest.artifact_type == ARTIFACT_TYPE:
            _ = PublishedArtifact(repository, found, raw).index  # it belongs to the disk that the config names
    yield named


def _attach(
    repository: Repository, target: Target, subject: Descriptor, claim: Claim, key: SigningKey, form: Format
) -> None:
    for found in signatures_of(repository, subject.digest):
        if isinstance(found, Unusable) or found.format != form:
            continue
        with contextlib.suppress(BadInput):
            if found.claim(key.public) == claim:
                return
    if form == "bundle":
        push_bundle(target, subject, bundle_of(claim, key), SIGN_PREDICATE)
    else:
        _add_simple(repository, target, subject.digest, claim, key)


def attach_provenance(
    repository: Repository, target: Target, subject: Descriptor, key: SigningKey, identity: str
) -> None:
    """Attach from what `subject`, an artifact, was built; not if it has provenance of this key already."""
    from imagetool.signing.provenance import PREDICATE, statement

    for found in signatures_of(repository, subject.digest):
        if isinstance(found, Unusable) or found.format != "bundle":
            continue
        with contextlib.suppress(BadInput):
            bundle = Bundle.parse(found.document)
            if key.public.verify(bundle.signature, bundle.signed):
                made = Statement.parse(bundle.payload_type, bundle.payload)
                if (made.digest, made.predicate_type) == (subject.digest, PREDICATE):
                    return
    artifact = PublishedArtifact(repository, subject, repository.manifest(subject))
    made = statement(artifact.config, subject.digest, identity, os.environ)
    push_bundle(target, subject, signed_statement(made, key), PREDICATE)


def bundle_of(claim: Claim, key: SigningKey) -> Bundle:
    """Make the bundle in which `key` says `claim`."""
    return signed_statement(Statement(claim.digest, claim.identity, SIGN_PREDICATE, {}), key)


def signed_statement(statement: Statement, key: SigningKey) -> Bundle:
    """Make the bundle in which `key` says `statement`."""
    payload = statement.to_json()
    signature = key.sign(pre_authentication(IN_TOTO_TYPE, payload))
    return Bundle(IN_TOTO_TYPE, payload, signature, key.public.hint)


def push_bundle(target: Target, subject: Descriptor, bundle: Bundle, predicate_type: str) -> Digest:
    """Attach `bundle` to `subject`; the digest of the manifest that does so."""
    raw = bundle.to_json()
    layer = Descriptor(BUNDLE_TYPE, Digest.of(raw), len(raw))
    annotations = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": predicate_type,
    }
    return push_attached(target, subject, layer, raw, annotations)


def _add_simple(repository: Repository, target: Target, subject: Digest, claim: Claim, key: SigningKey) -> None:
    """Add one layer to the manifest of simple signatures."""
    payload = Payload(claim.digest, claim.identity).to_json(f"imagetool {rootdisk.__version__}")
    signature = base64.b64encode(key.sign(payload)).decode()
    layer = Descriptor(PAYLOAD_TYPE, Digest.of(payload), len(payload), {SIGNATURE: signature})
    push_simple(target, subject, [(layer, payload)], simple_manifest(repository, subject))
