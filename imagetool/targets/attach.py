"""Attach a file to an artifact or image, with a manifest whose `subject` it is; image-spec 1.1, manifest.md."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from imagetool.packing.manifest import TITLE
from imagetool.sources.content import Content
from imagetool.targets.open import open_target
from imagetool.targets.target import Target, push_blobs
from rootdisk.errors import BadInput
from rootdisk.oci.documents import OCI_EMPTY, OCI_MANIFEST, Descriptor, Digest, Manifest, canonical_json
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.places import open_repository

_EMPTY = b"{}"


def attach(name: str, file: Path, media_type: str, options: RegistryOptions | None = None) -> Digest:
    """Attach `file` to the manifest or index that `name` refers to. Return the digest of the new manifest.

    Raises:
        BadInput: The media type is not valid, or the file cannot be read.
        RegistryError: The registry failed.
    """
    if "/" not in media_type.strip("/") or not media_type.isascii() or any(map(str.isspace, media_type)):
        raise BadInput(f"{media_type!r:.80} is not a media type", "write for example application/spdx+json")
    reference = parse_reference(name)
    with contextlib.closing(open_repository(reference, options)) as repository:
        subject = repository.resolve(reference.name)
    try:
        with file.open("rb") as stream:
            digest = Digest("sha256", hashlib.file_digest(stream, "sha256").hexdigest())
            size = stream.tell()
    except OSError as err:
        raise BadInput(f"cannot read {file}: {err.strerror}") from err
    layer = Descriptor(media_type, digest, size, {TITLE: file.name})
    with contextlib.closing(open_target(reference, options)) as target:
        return push_attached(target, subject, layer, file)


def push_attached(
    target: Target,
    subject: Descriptor,
    layer: Descriptor,
    content: Content,
    annotations: Mapping[str, str] = MappingProxyType({}),
) -> Digest:
    """Attach `layer` with its `content` to `subject`. Return the digest of the manifest, whose type is that of the layer."""
    config = Descriptor(OCI_EMPTY, Digest.of(_EMPTY), len(_EMPTY))
    plain = Descriptor(subject.media_type, subject.digest, subject.size)
    manifest = Manifest(OCI_MANIFEST, layer.media_type, config, (layer,), annotations, plain)
    push_blobs(target, [(config, _EMPTY), (layer, content)])
    return target.push_manifest(canonical_json(manifest.to_json()), OCI_MANIFEST, ("",))
