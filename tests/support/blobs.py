"""A manifest with one large blob, for tests of the registry client."""

from __future__ import annotations

from imagetool.targets.open import open_target
from rootdisk.oci.documents import OCI_CONFIG, OCI_MANIFEST, Descriptor, Digest, Manifest, canonical_json
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions

DATA = bytes(range(256)) * 12_000  # 3 MB
BLOB = Descriptor("application/octet-stream", Digest.of(DATA), len(DATA))
EMPTY = Descriptor(OCI_CONFIG, Digest.of(b"{}"), 2)
RAW = canonical_json(Manifest(OCI_MANIFEST, "", EMPTY, (BLOB,), {}).to_json())


def push(name: str, options: RegistryOptions) -> None:
    """Push the manifest as `name`, which ends in `:v1`."""
    target = open_target(parse_reference(name), options)
    target.push_blob(BLOB, lambda: iter([DATA]))
    target.push_blob(EMPTY, lambda: iter([b"{}"]))
    assert target.push_manifest(RAW, OCI_MANIFEST, ("v1",)) == Digest.of(RAW)
    target.close()
