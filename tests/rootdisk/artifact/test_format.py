"""The artifact's format: round trips, the specification's test vectors, and damage found entry by entry."""

from __future__ import annotations

import pytest

from rootdisk.artifact.format import ArtifactConfig, ArtifactManifest, ChunkIndex, SlotExtent
from rootdisk.artifact.zstd_frames import zero_frame
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import Digest, Manifest, canonical_json
from tests.support.artifacts import example_config, example_index
from tests.support.commands import ROOT

SPECIFICATION = ROOT / "docs" / "artifact-1.md"


def test_the_specifications_vectors() -> None:
    text = SPECIFICATION.read_text()
    assert str(example_index().disk_digest()) in text
    assert zero_frame(4096).hex() in text
    assert example_index().pack()[:64].hex() in text


def test_index_round_trip() -> None:
    assert ChunkIndex.parse(example_index().pack()) == example_index()


@pytest.mark.parametrize("offset", [24, 32, 40, 44, 48, 52, 56, 24 + 64, 24 + 64 + 8, 24 + 64 + 16, 8, 16])
def test_a_changed_number_in_the_index_is_found(offset: int) -> None:
    raw = bytearray(example_index().pack())
    raw[offset + 3] ^= 0x80
    with pytest.raises(BadInput):
        ChunkIndex.parse(bytes(raw))


def test_every_truncation_of_the_index_is_found() -> None:
    raw = example_index().pack()
    for length in range(len(raw)):
        with pytest.raises(BadInput):
            ChunkIndex.parse(raw[:length])


def test_config_round_trip() -> None:
    assert ArtifactConfig.parse(canonical_json(example_config().to_json())) == example_config()
    assert example_config().slot().offset == 65536


def test_configs_that_are_refused() -> None:
    good = example_config().to_json()
    with pytest.raises(Unsupported, match="artifact format 2"):
        ArtifactConfig.parse(canonical_json({**good, "format": 2}))
    with pytest.raises(Unsupported, match="layout 9"):
        ArtifactConfig.parse(canonical_json({**good, "layout": 9}))
    with pytest.raises(BadInput, match="boot: memory_mib"):
        ArtifactConfig.parse(canonical_json({**good, "boot": {}}))
    for wrong in (SlotExtent("s", 4096, 65536), SlotExtent("s", 65536 * 9, 65536), SlotExtent("s", 0, 0)):
        with pytest.raises(BadInput, match=r"does not lie on the disk|is not a whole number from 65536"):
            ArtifactConfig.parse(canonical_json(example_config()._replace(slots=(wrong,)).to_json()))


def test_other_manifests_are_named() -> None:
    descriptor = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(Digest.of(b"")), "size": 0}
    image = Manifest.parse(canonical_json({"schemaVersion": 2, "config": descriptor, "layers": []}))
    with pytest.raises(BadInput, match=r"not a rootdisk artifact but application/vnd\.oci\.image\.config"):
        ArtifactManifest.of(image)
