"""Small artifacts for tests of the fetch: disks of bytes nobody can boot, as chunks of any kind."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import zstandard

from imagetool.packing.manifest import Artifact, Blob, assemble
from imagetool.targets.open import open_target
from rootdisk.artifact.format import (
    CHUNKS_TYPE,
    DISK_TYPE,
    INITRAMFS_TYPE,
    KERNEL_TYPE,
    VMLINUX_TYPE,
    ArtifactConfig,
    Chunk,
    ChunkIndex,
    Process,
    SlotExtent,
)
from rootdisk.artifact.zstd_frames import compressor, seek_table, zero_frame
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions


@dataclass(frozen=True)
class Sample:
    artifact: Artifact
    index: ChunkIndex
    disk: bytes  # the raw one
    blob: Descriptor  # of the disk's frames, or the first of several

    @property
    def path(self) -> str:
        """Of the disk's blob at the registry."""
        return f"/blobs/{self.blob.digest}"


def noise(count: int, length: int, seed: int = 0) -> list[bytes]:
    """Chunks that do not compress, so that the blob is as long as the disk."""
    source = random.Random(seed)
    return [source.randbytes(length) for _ in range(count)]


def sample(raw: Sequence[bytes], frames: Sequence[bytes] | None = None, blobs: int = 1) -> Sample:
    """The artifact of a disk of these chunks; those that are all zeros become holes. `frames` in place of the right ones.

    The frames are in `blobs` blobs, the last with the seek table too.
    """
    chunks: list[Chunk] = []
    made = list(frames) if frames is not None else [_frame(data) for data in raw]
    at = blob_at = 0
    for data, frame in zip(raw, made, strict=True):
        zero = not any(data)
        sha256 = bytes(32) if zero else hashlib.sha256(data).digest()
        chunks.append(Chunk(at, len(data), blob_at, len(frame), sha256, zero))
        at, blob_at = at + len(data), blob_at + len(frame)
    index = ChunkIndex(at, tuple(chunks))
    table = seek_table((len(frame), len(data)) for frame, data in zip(made, raw, strict=True))
    each = -(-len(made) // blobs)
    parts = [b"".join(made[start : start + each]) for start in range(0, len(made), each)]
    disk = [Blob.of_bytes(DISK_TYPE, part) for part in [*parts[:-1], parts[-1] + table]]
    config = ArtifactConfig(
        1, Platform.host(), at, index.disk_digest(), "", (), Process(), "", 256, 1, "0" * 64, {}, "", "", {}
    )  # fmt: skip
    artifact = assemble(config, disk, Blob.of_bytes(CHUNKS_TYPE, index.pack()))
    return Sample(artifact, index, b"".join(raw), disk[0].descriptor)


@cache
def small() -> Sample:
    """An artifact of 6 MiB, with a hole in the middle; its chunks have 128 KiB."""
    return sample([*noise(20, 128 << 10), bytes(1 << 20), *noise(20, 128 << 10, seed=1)])


def publish(sample: Sample, reference: str, options: RegistryOptions) -> None:
    parsed = parse_reference(reference)
    target = open_target(parsed, options)
    for blob in sample.artifact.blobs:
        data = blob.data
        assert isinstance(data, bytes)
        target.push_blob(blob.descriptor, lambda data=data: iter([data]))  # type: ignore[misc]
    target.push_manifest(sample.artifact.manifest, OCI_MANIFEST, (str(parsed.name),))
    target.close()


def _frame(data: bytes) -> bytes:
    return compressor().compress(data) if any(data) else zero_frame(len(data))


def example_index() -> ChunkIndex:
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


def example_config() -> ArtifactConfig:
    return ArtifactConfig(
        1,
        Platform("linux", "arm64"),
        12288 + 65536 * 8,
        example_index().disk_digest(),
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


def with_boot(made: Sample, *more: Blob, initramfs: bytes | None = None, **changes: Any) -> Sample:
    """The same disk as another artifact, with kernel, initramfs and `more`, and a changed config."""
    config = ArtifactConfig.parse(
        next(b.data for b in made.artifact.blobs if b.descriptor.media_type.endswith("json"))  # type: ignore[arg-type]
    )
    disk = [blob for blob in made.artifact.blobs if blob.descriptor.media_type == DISK_TYPE]
    index = next(blob for blob in made.artifact.blobs if blob.descriptor.media_type == CHUNKS_TYPE)
    artifact = assemble(
        config._replace(**changes), disk, index, Blob.of_bytes(KERNEL_TYPE, KERNEL),
        Blob.of_bytes(INITRAMFS_TYPE, initramfs or INITRAMFS), *more,
    )  # fmt: skip
    return Sample(artifact, made.index, made.disk, made.blob)


# A small disk without kernel and initramfs, and those that with_boot() adds.
BARE = sample([*noise(8, 64 << 10), bytes(64 << 10)])
KERNEL, INITRAMFS = noise(2, 200_000, seed=6)
# A vmlinux, as it is and as it is published.
ELF = b"\x7fELF" * 1000
VMLINUX = Blob.of_bytes(VMLINUX_TYPE, zstandard.compress(ELF))
