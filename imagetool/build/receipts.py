"""The receipts of a build, each a frozen value that is checked when it is read. RECEIPTS lists all of them.

cache/NAME/source.json          SourceReceipt      the digest that the source names
cache/NAME/kernel.json          KernelReceipt      kernel, initramfs and vmlinux beside it
cache/NAME/disk.json            BuiltReceipt       the disk, and where it is: in cache/disks, or published already
cache/NAME/artifact.json        ArtifactReceipt    the artifact of that disk
cache/NAME/published.json       PublishedReceipt   where it is published
cache/disks/KEY/disk.json       DiskReceipt        all that an artifact's config says about the disk beside it
cache/guest/ARCH/init.json      InitReceipt        the guest's init beside it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from imagetool.guest.programs import InitReceipt, KernelReceipt
from imagetool.receipts import Receipt
from imagetool.tree.remarks import REMARKS_MAX_COUNT, Remark
from rootdisk.artifact.format import (
    DISK_MAX_BYTES,
    KEY_TAG_PREFIX,
    LABEL_MAX,
    LABELS_MAX_COUNT,
    Process,
    SlotExtent,
    slots_of,
)
from rootdisk.artifact.layers import LAYERS_MAX_COUNT, LayerInodes
from rootdisk.artifact.verity import Verity
from rootdisk.oci.documents import Digest
from rootdisk.oci.fields import INTEGER_MAX, Fields
from rootdisk.parsing.digests import HEX_SHA256

__all__ = [
    "RECEIPTS",
    "ArtifactReceipt",
    "BuiltReceipt",
    "DiskReceipt",
    "InitReceipt",
    "KernelReceipt",
    "PublishedReceipt",
    "SourceReceipt",
]

BLOBS_MAX_COUNT = 100_000
CHUNKS_MAX = 1 << 32
TARGETS_MAX_COUNT = 1000
_KEY = HEX_SHA256  # a derivation key


@dataclass(frozen=True, slots=True)
class SourceReceipt:
    """The manifest that a source names, and the diff IDs of its layers (digests, if it has none)."""

    reference: str
    digest: Digest
    platform: str
    layers: tuple[str, ...]

    FORMAT: ClassVar[int] = 1

    @classmethod
    def parse(cls, value: Fields) -> SourceReceipt:
        """Check the fields of `value`; BadInput names the one that is wrong."""
        return cls(
            value.text("reference"),
            _digest(value, "digest"),
            value.text("platform"),
            value.texts("layers", LAYERS_MAX_COUNT),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value for `parse`."""
        return {
            "reference": self.reference,
            "digest": str(self.digest),
            "platform": self.platform,
            "layers": list(self.layers),
        }


@dataclass(frozen=True, slots=True)
class DiskReceipt:
    """A packed disk: all that an artifact's config says about it. Sizes are bytes."""

    key: str
    inputs: Mapping[str, Any]
    size: int
    digest: Digest
    blobs: tuple[tuple[Digest, int], ...]  # with the size of each
    slots: tuple[SlotExtent, ...]
    layers: tuple[LayerInodes, ...]
    uuid: str
    process: Process
    labels: Mapping[str, str]
    source_digest: str
    chunks_new: int
    chunks_reused: int
    writer: Mapping[str, str]
    files: Mapping[str, str]  # digests of the other files, by name
    remarks: tuple[Remark, ...] = ()  # what was changed or left out of the image
    verity: Verity | None = None  # the dm-verity tree beside it
    boot_chunks: tuple[int, ...] = ()  # numbers of chunks, in the order of the boot trace

    FORMAT: ClassVar[int] = 1

    @classmethod
    def parse(cls, value: Fields) -> DiskReceipt:
        """Check the fields of `value`; BadInput names the one that is wrong."""
        size, chunks = value.integer("size", 1, DISK_MAX_BYTES), value.inner("chunks")
        return cls(
            value.text("key", limit=64, pattern=_KEY),
            dict(value.inner("inputs").value),
            size,
            _digest(value, "digest"),
            tuple(
                (_digest(blob, "digest"), blob.integer("size", 1, INTEGER_MAX))
                for blob in value.objects("blobs", BLOBS_MAX_COUNT)
            ),
            slots_of(value, size),
            tuple(
                LayerInodes(layer.text("diff_id", limit=256), layer.integer("first_inode", 0, (1 << 32) - 1))
                for layer in value.objects("layers", LAYERS_MAX_COUNT)
            ),
            value.text("uuid", limit=36, pattern="[0-9a-f-]+"),
            Process.of(value.inner("process")),
            value.strings("labels", LABELS_MAX_COUNT, limit=LABEL_MAX),
            value.text("source_digest", limit=256),
            chunks.integer("new", 0, CHUNKS_MAX),
            chunks.integer("reused", 0, CHUNKS_MAX),
            value.strings("writer", 64, limit=256),
            value.strings("files", 64, limit=256),
            tuple(map(Remark.parse, value.objects("remarks", REMARKS_MAX_COUNT, []))),
            Verity.of(value.inner("verity"), size) if value.value.get("verity") is not None else None,
            value.integers("boot_chunks", 0, CHUNKS_MAX, CHUNKS_MAX),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value for `parse`."""
        return {
            "key": self.key,
            "inputs": dict(self.inputs),
            "size": self.size,
            "digest": str(self.digest),
            "blobs": [{"digest": str(digest), "size": size} for digest, size in self.blobs],
            "slots": [{"name": slot.name, "offset": slot.offset, "length": slot.length} for slot in self.slots],
            "layers": [{"diff_id": layer.diff_id, "first_inode": layer.first} for layer in self.layers],
            "uuid": self.uuid,
            "process": self.process.to_json(),
            "labels": dict(self.labels),
            "source_digest": self.source_digest,
            "chunks": {"new": self.chunks_new, "reused": self.chunks_reused},
            "writer": dict(self.writer),
            "files": dict(self.files),
            "remarks": [remark.to_json() for remark in self.remarks],
            **({"verity": self.verity.to_json()} if self.verity else {}),
            **({"boot_chunks": list(self.boot_chunks)} if self.boot_chunks else {}),
        }

    @property
    def compressed(self) -> int:
        """The size of all blobs, bytes."""
        return sum(size for _, size in self.blobs)


@dataclass(frozen=True, slots=True)
class BuiltReceipt:
    """The result of the last build of an image, and its inputs: a disk in cache/disks, or one that was `published` already."""

    key: str
    inputs: Mapping[str, Any]
    source_layers: tuple[str, ...]
    artifact: Digest
    compressed: int  # of all blobs, bytes
    size: int  # of the disk, bytes
    chunks_new: int
    chunks_reused: int
    published: str = ""  # the target where it was found; "" if the disk is here

    FORMAT: ClassVar[int] = 1

    @classmethod
    def parse(cls, value: Fields) -> BuiltReceipt:
        """Check the fields of `value`; BadInput names the one that is wrong."""
        chunks = value.inner("chunks")
        return cls(
            value.text("key", limit=64, pattern=_KEY),
            dict(value.inner("inputs").value),
            value.texts("source_layers", LAYERS_MAX_COUNT),
            _digest(value, "artifact"),
            value.integer("compressed", 0, INTEGER_MAX),
            value.integer("size", 1, DISK_MAX_BYTES),
            chunks.integer("new", 0, CHUNKS_MAX),
            chunks.integer("reused", 0, CHUNKS_MAX),
            value.text("published", ""),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value for `parse`."""
        return {
            "key": self.key,
            "inputs": dict(self.inputs),
            "source_layers": list(self.source_layers),
            "artifact": str(self.artifact),
            "compressed": self.compressed,
            "size": self.size,
            "chunks": {"new": self.chunks_new, "reused": self.chunks_reused},
            "published": self.published,
        }


@dataclass(frozen=True, slots=True)
class ArtifactReceipt:
    """The artifact of the last build, and the tag of its key."""

    digest: Digest
    key: str
    size: int  # of all the disk's blobs, bytes

    FORMAT: ClassVar[int] = 1

    @classmethod
    def parse(cls, value: Fields) -> ArtifactReceipt:
        """Check the fields of `value`; BadInput names the one that is wrong."""
        return cls(
            _digest(value, "digest"),
            value.text("key", limit=64, pattern=f"{KEY_TAG_PREFIX}[0-9a-f]+"),
            value.integer("size", 0, INTEGER_MAX),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value for `parse`."""
        return {"digest": str(self.digest), "key": self.key, "size": self.size}


@dataclass(frozen=True, slots=True)
class PublishedReceipt:
    """An artifact, or the index of a group, and every name that it was published under."""

    digest: Digest
    targets: tuple[str, ...]

    FORMAT: ClassVar[int] = 1

    @classmethod
    def parse(cls, value: Fields) -> PublishedReceipt:
        """Check the fields of `value`; BadInput names the one that is wrong."""
        return cls(_digest(value, "digest"), value.texts("targets", TARGETS_MAX_COUNT))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value for `parse`."""
        return {"digest": str(self.digest), "targets": list(self.targets)}


RECEIPTS: tuple[type[Receipt], ...] = (
    SourceReceipt,
    KernelReceipt,
    InitReceipt,
    DiskReceipt,
    BuiltReceipt,
    ArtifactReceipt,
    PublishedReceipt,
)


def _digest(value: Fields, key: str) -> Digest:
    return Digest.parse(value.value.get(key))
