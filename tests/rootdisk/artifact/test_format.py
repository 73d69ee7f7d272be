"""The artifact's format: round trips, the specification's test vectors, and damage found entry by entry."""

from __future__ import annotations

import hashlib

import pytest

from rootdisk.artifact.format import ArtifactConfig, ArtifactManifest, Chunk, ChunkIndex, Process, SlotExtent
from rootdisk.artifact.zstd_frames import compressor, zero_frame
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import Digest, Manifest, Platform, canonical_json
from tests.support.commands import ROOT

SPECIFICATION = ROOT / "docs" / "artifact-1.md"


def example() -> ChunkIndex:
    ones = b"\x01" * 4096
    zero, frame = zero_frame(4096), compressor().compress(ones)
    return ChunkIndex(
        12288,
        (
            Chunk(0, 4096, 0, len(zero), bytes(32), True),
            Chunk(4096, 4096, len(zero), len(frame), hashlib.sha256(ones).digest(), False),
            Chunk(8192, 4096, len(zero) + len(frame), len(zero), bytes(32), True),
        ),
    )


def test_the_specifications_vectors() -> None:
    text = SPECIFICATION.read_text()
    assert str(example().disk_digest()) in text
    assert zero_frame(4096).hex() in text
    assert example().pack()[:64].hex() in text


def test_index_round_trip() -> None:
    assert ChunkIndex.parse(example().pack()) == example()


@pytest.mark.parametrize("offset", [24, 32, 40, 44, 48, 52, 56, 24 + 64, 24 + 64 + 8, 24 + 64 + 16, 8, 16])
def test_a_changed_number_in_the_index_is_found(offset: int) -> None:
    raw = bytearray(example().pack())
    raw[offset + 3] ^= 0x80
    with pytest.raises(BadInput):
        ChunkIndex.parse(bytes(raw))


def test_every_truncation_of_the_index_is_found() -> None:
    raw = example().pack()
    for length in range(len(raw)):
        with pytest.raises(BadInput):
            ChunkIndex.parse(raw[:length])


def config() -> ArtifactConfig:
    return ArtifactConfig(
        1,
        Platform("linux", "arm64"),
        12288 + 65536 * 8,
        example().disk_digest(),
        "00000000-0000-4000-8000-000000000000",
        (SlotExtent("slot", 65536, 262144),),
        Process(("a",), ("b",), "/w", "u:g", "SIGINT"),
        "quiet",
        256,
        2,
        "0" * 64,
        {"layout": 1},
        "registry.test/app:1",
        "sha256:" + "1" * 64,
        {"rootdisk": "0.1.0"},
        (3, 1),
        {"team": "x"},
    )


def test_config_round_trip() -> None:
    assert ArtifactConfig.parse(canonical_json(config().to_json())) == config()
    assert config().slot().offset == 65536


def test_configs_that_are_refused() -> None:
    good = config().to_json()
    with pytest.raises(Unsupported, match="artifact format 2"):
        ArtifactConfig.parse(canonical_json({**good, "format": 2}))
    with pytest.raises(Unsupported, match="layout 9"):
        ArtifactConfig.parse(canonical_json({**good, "layout": 9}))
    with pytest.raises(BadInput, match="boot: memory_mib"):
        ArtifactConfig.parse(canonical_json({**good, "boot": {}}))
    for wrong in (SlotExtent("s", 4096, 65536), SlotExtent("s", 65536 * 9, 65536), SlotExtent("s", 0, 0)):
        with pytest.raises(BadInput, match=r"does not lie on the disk|is not a whole number from 65536"):
            ArtifactConfig.parse(canonical_json(config()._replace(slots=(wrong,)).to_json()))


def test_other_manifests_are_named() -> None:
    descriptor = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(Digest.of(b"")), "size": 0}
    image = Manifest.parse(canonical_json({"schemaVersion": 2, "config": descriptor, "layers": []}))
    with pytest.raises(BadInput, match=r"not a rootdisk artifact but application/vnd\.oci\.image\.config"):
        ArtifactManifest.of(image)
