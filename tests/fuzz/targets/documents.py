"""Documents of registries and layouts: manifests, indexes, configs, chunk indexes, and a chunk's frame."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

import zstandard

from imagetool.sources.image_config import ImageConfig, check_image
from rootdisk.artifact.format import (
    INDEX_ENTRY,
    INDEX_HEADER,
    INDEX_MAGIC,
    ArtifactConfig,
    ArtifactManifest,
    Chunk,
    ChunkIndex,
)
from rootdisk.artifact.zstd_frames import compressor, unpack, zero_frame
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest, Index, Manifest, Platform, canonical_json
from rootdisk.oci.layout import find
from rootdisk.oci.repository import describe_manifest
from tests.fuzz.target import Target

AMD64 = Platform("linux", "amd64")
ZERO, ONE = "sha256:" + "0" * 64, "sha256:" + "1" * 64
MANIFEST = {
    "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/vnd.rootdisk.v1",
    "config": {"mediaType": "application/vnd.rootdisk.config.v1+json", "digest": ZERO, "size": 2},
    "layers": [
        {"mediaType": "application/vnd.rootdisk.disk.v1.ext4+zstd", "digest": ONE, "size": 9, "annotations": {"a": "b"}},
        {"mediaType": "application/vnd.rootdisk.chunks.v1", "digest": ONE, "size": 24},
    ],
    "subject": {"mediaType": "x/y", "digest": ZERO, "size": 0}, "annotations": {"k": "v"},
}  # fmt: skip
INDEX = {
    "schemaVersion": 2,
    "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": ZERO, "size": 3, "platform": {"os": "linux", "architecture": "amd64"},
         "annotations": {"org.opencontainers.image.ref.name": "v1"}},
        {"mediaType": "x/y", "digest": ONE, "size": 3, "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
    ],
}  # fmt: skip
IMAGE_CONFIG = {
    "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [ZERO]},
    "config": {"Env": ["A=1"], "Cmd": ["x"], "Entrypoint": ["y"], "WorkingDir": "/", "User": "u:g", "StopSignal": "TERM", "Labels": {"a": "b"},
               "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}},
}  # fmt: skip
ARTIFACT_CONFIG = {
    "format": 1, "layout": 1, "platform": {"os": "linux", "architecture": "amd64"}, "labels": {}, "writer": {"a": "1"},
    "disk": {"size": 1 << 20, "digest": ZERO, "uuid": "00000000-0000-0000-0000-000000000000",
             "layers": [{"diff_id": ONE, "first_inode": 11}], "slots": [{"name": "slot", "offset": 65536, "length": 65536}]},
    "process": {"entrypoint": ["a"], "cmd": ["c"], "workdir": "/", "user": "b", "stop_signal": "SIGTERM"},
    "boot": {"cmdline": "c", "memory_mib": 256, "cpus": 1, "chunks": [0]}, "derivation": {"key": "0" * 64, "inputs": {}},
    "source": {"reference": "r", "digest": ZERO},
}  # fmt: skip


def manifest(data: bytes) -> None:
    digest = Digest.of(data)
    describe_manifest(data, digest, "test")
    found = Manifest.parse(data)
    assert Manifest.parse(canonical_json(found.to_json())).layers == found.layers
    roles = ArtifactManifest.of(found)
    assert roles.disk_bytes >= 0


def index(data: bytes) -> None:
    found = Index.parse(data)
    canonical_json(found.to_json())
    chosen = found.choose(AMD64)
    assert chosen.platform == AMD64
    find(found, "v1", "test", lambda digest: chosen)
    with suppress(BadInput):  # there may be several
        find(found, "", "test", lambda digest: chosen)


def image_config(data: bytes) -> None:
    found = ImageConfig.parse(data)
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": ONE, "size": 9}
    manifest = json.dumps(MANIFEST | {"layers": [layer]}).encode()
    check_image(Manifest.parse(manifest), found, AMD64, "test")
    canonical_json(found.process.to_json())
    canonical_json([*found.env, *found.labels.items()])


def artifact_config(data: bytes) -> None:
    found = ArtifactConfig.parse(data)
    again = canonical_json(found.to_json())
    assert ArtifactConfig.parse(again) == found
    extent = found.slot()
    assert 0 < extent.offset < extent.offset + extent.length <= found.disk_size


def chunk_index(data: bytes) -> None:
    found = ChunkIndex.parse(data)
    assert found.pack() == data
    assert found.blob_end >= 0
    found.disk_digest()


_DECOMPRESSOR = zstandard.ZstdDecompressor()


def frame(data: bytes) -> None:
    """A frame for a chunk whose length and digest are in front of it."""
    length = int.from_bytes(data[:3], "little")
    raw = unpack(Chunk(0, length, 0, len(data), data[3:35], False), data[35:], _DECOMPRESSOR)
    assert len(raw) == length


def chunk_indexes() -> list[bytes]:
    entries = INDEX_ENTRY.pack(0, 0, 4096, 14, 1, 0, bytes(32)) + INDEX_ENTRY.pack(4096, 14, 4096, 100, 0, 0, b"h" * 32)
    return [
        INDEX_HEADER.pack(INDEX_MAGIC, 8192, 2, 0) + entries,
        INDEX_HEADER.pack(INDEX_MAGIC, 0, 0, 0),
        INDEX_HEADER.pack(INDEX_MAGIC, 1 << 40, 1 << 22, 0),
        b"",
    ]


def frames() -> list[bytes]:
    found = []
    for raw in (b"a" * 5000, bytes(range(256)) * 4, bytes(100_000)):
        packed = compressor().compress(raw) if any(raw) else zero_frame(len(raw))
        found.append(len(raw).to_bytes(3, "little") + hashlib.sha256(raw).digest() + packed)
    return found


def documents(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


WORDS = (
    b"null", b"true", b"{}", b"[]", b"[[]]", b"-1", b"1.5", b"1e999", b"NaN", b'"\\ud800"', b'"\\u0000"', b"9" * 25, b'"sha256:zz"',
    *(f'"{name}"'.encode() for value in (MANIFEST, INDEX, IMAGE_CONFIG, ARTIFACT_CONFIG) for name in value),
    *(f'"{name}"'.encode() for value in (ARTIFACT_CONFIG["disk"], ARTIFACT_CONFIG["boot"], IMAGE_CONFIG["config"]) for name in value),  # type: ignore[attr-defined]
)  # fmt: skip
TARGETS = {
    "manifest": Target(manifest, lambda: documents(MANIFEST), WORDS),
    "index": Target(index, lambda: documents(INDEX), WORDS),
    "image-config": Target(image_config, lambda: documents(IMAGE_CONFIG), WORDS),
    "artifact-config": Target(artifact_config, lambda: documents(ARTIFACT_CONFIG), WORDS),
    "chunk-index": Target(chunk_index, chunk_indexes),
    "frame": Target(frame, frames),
}
