"""Signatures of what a repository holds, found where tools of the field put them, bounded, none of them checked yet.

Sigstore bundles are referrers; simple signatures are layers of the manifest that the tag `sha256-HEX.sig` names. They come
one by one, so who is content with the first has nothing more fetched.
"""

from __future__ import annotations

from collections.abc import Iterator

from rootdisk.errors import BadInput, DigestMismatch, RegistryError
from rootdisk.oci.documents import Descriptor, Digest, Manifest
from rootdisk.oci.referrers import signatures_tag, simple_manifest
from rootdisk.oci.repository import Repository, read_blob
from rootdisk.text import printable
from rootdisk.trust.bundle import BUNDLE_MAX_BYTES, BUNDLE_TYPE
from rootdisk.trust.judgement import Found, Unusable
from rootdisk.trust.signatures import Signature
from rootdisk.trust.simple import PAYLOAD_MAX_BYTES, PAYLOAD_TYPE, SIGNATURE, signature_of

SIGNATURES_MAX = 64  # of one manifest; each costs two requests and a check


def signatures_of(repository: Repository, subject: Digest) -> Iterator[Found]:
    """Yield the signatures of `subject`: bundles, then simple ones.

    Raises:
        BadInput: there are more than SIGNATURES_MAX, or the list of them is malformed or too long.
        RegistryError: the registry cannot be asked.
    """
    for count, signature in enumerate(_all(repository, subject)):
        if count == SIGNATURES_MAX:
            raise BadInput(f"{subject}: more than {SIGNATURES_MAX} signatures", "remove those that are not needed")
        yield signature


def _all(repository: Repository, subject: Digest) -> Iterator[Found]:
    for descriptor in repository.referrers(subject, BUNDLE_TYPE):
        yield _bundle(repository, subject, descriptor)
    yield from _simple(repository, subject)


def _bundle(repository: Repository, subject: Digest, descriptor: Descriptor) -> Found:
    what = f"referrer {descriptor.digest.short}"
    try:
        manifest = Manifest.parse(repository.manifest(descriptor))
        if manifest.subject is None or manifest.subject.digest != subject:
            return Unusable(f"{what} is attached to something else")
        if len(manifest.layers) != 1 or manifest.layers[0].media_type != BUNDLE_TYPE:
            return Unusable(f"{what} holds no bundle")
        return Signature("bundle", read_blob(repository, manifest.layers[0], BUNDLE_MAX_BYTES))
    except (BadInput, DigestMismatch) as err:
        return Unusable(f"{what}: {printable(err.message)}")
    except RegistryError as err:
        if err.status != 404:
            raise
        return Unusable(f"{what} is listed and not there")


def _simple(repository: Repository, subject: Digest) -> Iterator[Found]:
    try:
        manifest = simple_manifest(repository, subject)
    except BadInput as err:
        yield Unusable(f"{signatures_tag(subject)[:20]}…: {printable(err.message)}")
        return
    for layer in manifest.layers if manifest is not None else ():
        if layer.media_type != PAYLOAD_TYPE:
            continue
        try:
            signature = signature_of(layer.annotations.get(SIGNATURE, ""))
            yield Signature("simple", read_blob(repository, layer, PAYLOAD_MAX_BYTES), signature)
        except (BadInput, DigestMismatch) as err:
            yield Unusable(f"simple signature {layer.digest.short}: {printable(err.message)}")
