"""Tags that belong to a digest, whatever its algorithm: none is a version."""

from __future__ import annotations

import hashlib

import pytest

from rootdisk.oci.documents import Digest
from rootdisk.oci.referrers import belongs_to_digest, referrers_tag, signatures_tag


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_tags_of_a_digest(algorithm: str) -> None:
    digest = Digest.parse(f"{algorithm}:{hashlib.new(algorithm, b'x').hexdigest()}")
    for tag in (referrers_tag(digest), signatures_tag(digest)):
        assert belongs_to_digest(tag)
        assert not belongs_to_digest(f"{tag}0")
        assert not belongs_to_digest(tag[:60])
