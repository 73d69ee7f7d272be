"""The artifact's format, version 1, parsed into frozen values: media types, config and chunk index.

docs/artifact-1.md is the specification. Trust runs manifest digest → index digest → chunk digest → bytes. The writer's
side is in imagetool/packing/manifest.py, made of the same values.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rootdisk.artifact.compressed import VMLINUX_MAX_BYTES, Content
from rootdisk.artifact.layers import LayerInodes, layers_of, left_out
from rootdisk.artifact.verity import Verity
from rootdisk.errors import BadInput, Unsupported
from rootdisk.limits import ALLOW_MAX, ALLOW_MAX_COUNT
from rootdisk.oci.documents import Descriptor, Digest, Manifest, Platform, parse_json
from rootdisk.oci.fields import Fields
from rootdisk.parsing.digests import HEX_SHA256
from rootdisk.parsing.ids import check_user
from rootdisk.text import printable

ARTIFACT_TYPE = "application/vnd.rootdisk.v1"
CONFIG_TYPE = "application/vnd.rootdisk.config.v1+json"
DISK_TYPE = "application/vnd.rootdisk.disk.v1.ext4+zstd"
CHUNKS_TYPE = "application/vnd.rootdisk.chunks.v1"
KERNEL_TYPE = "application/vnd.rootdisk.kernel.v1"
INITRAMFS_TYPE = "application/vnd.rootdisk.initramfs.v1"
VERITY_TYPE = "application/vnd.rootdisk.verity.v1"
VMLINUX_TYPE = "application/vnd.rootdisk.kernel.v1+zstd"

FORMAT_VERSION = 1
LAYOUT_VERSION = 1
TEMPLATE_VERSION, TEMPLATE_WITH_VERITY = 1, 2  # of the frames by which a saved init goes on: docs/layout-1.md

DISK_MAX_BYTES = 16 << 40  # 16 TiB, what a 4 KiB-block ext4 is made for here
CHUNK_MAX_BYTES = 16 << 20  # of raw bytes in a chunk with data; bounds what a reader holds in memory
ZERO_CHUNK_MAX_BYTES = 1 << 30  # the seekable format's limit for a frame
CHUNKS_MAX_COUNT = 1 << 20  # 16 TiB of the largest; an index of 64 MiB
CONFIG_MAX_BYTES = 4 << 20
SLOT_MAX_BYTES = 16 << 20  # made in memory, several times over
SLOTS_MAX_COUNT = 16
CMDLINE_MAX = 1024  # half of the kernel's 2048 (COMMAND_LINE_SIZE); the runner adds to it
MEMORY_MIN_MIB, MEMORY_MAX_MIB = 32, 16 << 20  # what a user may ask for: 32 MiB to 16 TiB
CPUS_MAX = 255  # QEMU's microvm has 288, libkrun 255
WORDS_MAX_COUNT, WORD_MAX = 10_000, 128 << 10  # execve(2): MAX_ARG_STRLEN
LABELS_MAX_COUNT, LABEL_MAX = 10_000, 1 << 20

KEY_TAG_PREFIX, KEY_TAG_DIGITS = "key-", 32  # tags of the build cache

INDEX_MAGIC = b"RDCHUNK1"
INDEX_HEADER = struct.Struct("<8sQII")
INDEX_ENTRY = struct.Struct("<QQIIII32s")
INDEX_MAX_BYTES = INDEX_HEADER.size + CHUNKS_MAX_COUNT * INDEX_ENTRY.size


class Chunk(NamedTuple):
    """A run of the disk and its zstd frame in the zstd file. Offsets and lengths are bytes; zero chunks are holes."""

    offset: int
    length: int
    blob_offset: int
    blob_length: int
    sha256: bytes  # of the raw bytes; 32 zero bytes in a zero chunk
    zero: bool

    @property
    def end(self) -> int:
        """The byte of the disk after the chunk."""
        return self.offset + self.length

    @property
    def blob_end(self) -> int:
        """The byte of the zstd file after the frame."""
        return self.blob_offset + self.blob_length


class ChunkIndex(NamedTuple):
    """Every chunk of one disk, in disk order, without gap or overlap.

    The blob: header `RDCHUNK1`, le64 disk size, le32 number of chunks, le32 zero; then an entry a chunk, 64 bytes:
    le64 raw offset, le64 blob offset, le32 raw length, le32 blob length, le32 flags (bit 0: zero), le32 zero, sha256.
    """

    disk_size: int
    chunks: tuple[Chunk, ...]

    def pack(self) -> bytes:
        """Return the index as the blob has it."""
        entries = [
            INDEX_ENTRY.pack(c.offset, c.blob_offset, c.length, c.blob_length, int(c.zero), 0, c.sha256)
            for c in self.chunks
        ]
        return INDEX_HEADER.pack(INDEX_MAGIC, self.disk_size, len(self.chunks), 0) + b"".join(entries)

    @classmethod
    def parse(cls, raw: bytes) -> ChunkIndex:
        """Parse the index in `raw` and check every length and the order. BadInput says which entry is wrong."""
        if len(raw) < INDEX_HEADER.size:
            raise BadInput(f"chunk index: {len(raw)} bytes are too short for a header")
        magic, disk_size, count, reserved = INDEX_HEADER.unpack_from(raw)
        if magic != INDEX_MAGIC or reserved:
            raise Unsupported("chunk index: unknown format", "a newer rootdisk may read it")
        if count > CHUNKS_MAX_COUNT or disk_size > DISK_MAX_BYTES:
            raise BadInput(f"chunk index: {count} chunks of a {disk_size} byte disk are past the format's limits")
        if len(raw) != INDEX_HEADER.size + count * INDEX_ENTRY.size:
            raise BadInput(f"chunk index: {len(raw)} bytes do not hold {count} entries")
        chunks = []
        end = blob_end = 0
        for number, entry in enumerate(INDEX_ENTRY.iter_unpack(memoryview(raw)[INDEX_HEADER.size :])):
            offset, blob_offset, length, blob_length, flags, reserved, sha256 = entry
            zero = flags == 1
            limit = ZERO_CHUNK_MAX_BYTES if zero else CHUNK_MAX_BYTES
            # A frame is never much longer than its content: ZSTD_compressBound is below n + n/128 + 1 KiB.
            if (
                flags > 1
                or reserved
                or offset != end
                or blob_offset != blob_end
                or not 0 < length <= limit
                or not 0 < blob_length <= length + (length >> 7) + 1024
                or (zero and sha256 != bytes(32))
            ):
                raise BadInput(f"chunk index: entry {number} is wrong", "the artifact is damaged")
            end = offset + length
            blob_end = blob_offset + blob_length
            chunks.append(Chunk(offset, length, blob_offset, blob_length, sha256, zero))
        if end != disk_size:
            raise BadInput(f"chunk index: chunks end at {end}, the disk at {disk_size}")
        return cls(disk_size, tuple(chunks))

    @property
    def blob_end(self) -> int:
        """The byte at which the last frame ends and the seek table begins."""
        return self.chunks[-1].blob_end if self.chunks else 0

    def disk_digest(self) -> Digest:
        """Return the disk's identity: sha256 over its size and each chunk's offset, length, zero flag and sha256.

        Decided by the raw bytes and where chunks are cut, not by the compressor; checked while fetching without
        reading gigabytes of holes again.
        """
        digest = hashlib.sha256(b"rootdisk disk 1\0" + struct.pack("<Q", self.disk_size))
        for chunk in self.chunks:
            digest.update(struct.pack("<QQB32s", chunk.offset, chunk.length, chunk.zero, chunk.sha256))
        return Digest("sha256", digest.hexdigest())


class SlotExtent(NamedTuple):
    """A reserved slot's place on the disk, in bytes; both are multiples of 64 KiB."""

    name: str
    offset: int
    length: int


class Process(NamedTuple):
    """The program that the image runs by default; image-spec config.md."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    volumes: tuple[str, ...] = ()  # directories that are there when it starts
    pid1: bool | None = None  # whether it is process 1; None: by its name

    def to_json(self) -> dict[str, Any]:
        """Return the value for the config."""
        value: dict[str, Any] = {
            "entrypoint": list(self.entrypoint),
            "cmd": list(self.cmd),
            "workdir": self.workdir,
            "user": self.user,
            "stop_signal": self.stop_signal,
        }
        value |= {"volumes": list(self.volumes)} if self.volumes else {}
        return value | ({"pid1": self.pid1} if self.pid1 is not None else {})

    @classmethod
    def of(cls, value: Fields) -> Process:
        """Parse the config's value. BadInput names the key that is wrong."""
        return cls(
            value.texts("entrypoint", WORDS_MAX_COUNT, limit=WORD_MAX),
            value.texts("cmd", WORDS_MAX_COUNT, limit=WORD_MAX),
            value.text("workdir", "/"),
            check_user(value.text("user", "", limit=256), f"{value.what}: user"),
            value.text("stop_signal", "SIGTERM", limit=32),
            value.texts("volumes", WORDS_MAX_COUNT),
            value.boolean("pid1"),
        )


def slots_of(disk: Fields, disk_size: int) -> tuple[SlotExtent, ...]:
    """Read `slots` of a disk of so many bytes; BadInput names the slot that does not lie on it."""
    slots: list[SlotExtent] = []
    for item in disk.objects("slots", SLOTS_MAX_COUNT):
        slot = SlotExtent(
            item.text("name", limit=64, pattern="[!-~]+"),
            item.integer("offset", 65536, disk_size),
            item.integer("length", 65536, SLOT_MAX_BYTES),
        )
        if slot.offset % 65536 or slot.length % 65536 or slot.offset + slot.length > disk_size:
            raise item.wrong("offset", f"slot {slot.name!r} does not lie on the disk")
        if any(slot.name == other.name for other in slots):
            raise item.wrong("name", f"slot {slot.name!r} is there twice")
        slots.append(slot)
    return tuple(slots)


def labels_of(config: Fields) -> dict[str, str]:
    """Read `labels`; BadInput if they are too many or too long."""
    return config.strings("labels", LABELS_MAX_COUNT, limit=LABEL_MAX)


def _allowed(config: Fields) -> tuple[str, ...]:
    """Return the rules of `network`. A value that has no list of rules is an error, not the absence of a limit."""
    if "network" not in config.value:
        return ()
    network = config.inner("network")
    rules = network.texts("allow", ALLOW_MAX_COUNT, limit=ALLOW_MAX)
    if not rules:
        raise network.wrong("allow", "no rule is in it")
    return rules


class ArtifactConfig(NamedTuple):
    """The config blob: what the disk is, what it was made from, and how to boot it. Sizes are bytes."""

    layout_version: int
    platform: Platform
    disk_size: int
    disk_digest: Digest  # ChunkIndex.disk_digest
    disk_uuid: str
    slots: tuple[SlotExtent, ...]
    process: Process
    cmdline: str  # of the kernel; the runner appends the slot's digest
    memory_mib: int
    cpus: int
    derivation_key: str  # 64 hex
    inputs: Mapping[str, Any]  # what the key is the sha256 of, as canonical JSON
    source: str  # reference as it was asked for; "" where it names a place on the builder
    source_digest: str
    writer: Mapping[str, str]  # versions: rootdisk, zstandard, libzstd
    boot_chunks: tuple[int, ...] = ()  # numbers of chunks in the order a traced boot read them
    labels: Mapping[str, str] | None = None
    layers: tuple[LayerInodes, ...] = ()  # base first; the last is what rootdisk adds
    # What the disk does not have as the image says: how many, by kind.
    left_out: Mapping[str, int] = MappingProxyType({})
    verity: Verity | None = None
    allow: tuple[str, ...] = ()  # rules of what its sandboxes may reach by default; () without a limit
    template: int = 0  # how its init can be saved before it touches the disk: a version, or 0 if it cannot
    vmlinux: Content | None = None  # the kernel as an ELF file

    @classmethod
    def parse(cls, raw: bytes) -> ArtifactConfig:
        """Parse the config blob `raw`, bounded.

        Raises:
            BadInput: a key is missing or wrong.
            Unsupported: a newer format.
        """
        value = Fields(
            parse_json(raw, "artifact config", CONFIG_MAX_BYTES), "artifact config", "the artifact is damaged"
        )
        form, layout = value.value.get("format"), value.value.get("layout")
        if type(form) is not int or form != FORMAT_VERSION:
            raise Unsupported(f"artifact format {printable(repr(form), 20)}", f"this rootdisk reads {FORMAT_VERSION}")
        if type(layout) is not int or layout not in (0, LAYOUT_VERSION):
            raise Unsupported(f"disk layout {printable(repr(layout), 20)}", f"this rootdisk boots {LAYOUT_VERSION}")
        disk, boot = value.inner("disk"), value.inner("boot")
        derivation, source = value.inner("derivation"), value.inner("source")
        size = disk.integer("size", 1, DISK_MAX_BYTES)
        return cls(
            layout,
            Platform.of(value.inner("platform").value),
            size,
            Digest.parse(disk.value.get("digest")),
            disk.text("uuid", "", limit=36, pattern="[0-9a-f-]*"),
            slots_of(disk, size),
            Process.of(value.inner("process")),
            boot.text("cmdline", "", limit=CMDLINE_MAX, pattern="[ -~]*"),
            boot.integer("memory_mib", 1, MEMORY_MAX_MIB),
            boot.integer("cpus", 1, CPUS_MAX),
            derivation.text("key", limit=64, pattern=HEX_SHA256),
            dict(derivation.inner("inputs").value),
            source.text("reference", ""),
            source.text("digest", "", limit=256),
            value.strings("writer", 64, limit=256),
            boot.integers("chunks", 0, CHUNKS_MAX_COUNT - 1, CHUNKS_MAX_COUNT),
            labels_of(value),
            layers_of(disk),
            left_out(disk),
            Verity.of(disk.inner("verity"), size) if disk.value.get("verity") is not None else None,
            _allowed(value),
            boot.integer("template", 0, (1 << 16) - 1) if "template" in boot.value else 0,
            Content.of(boot.inner("vmlinux"), VMLINUX_MAX_BYTES) if boot.value.get("vmlinux") is not None else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the config blob's value, which is written as canonical JSON."""
        return {
            "format": FORMAT_VERSION,
            "layout": self.layout_version,
            "platform": Descriptor("", Digest("sha256", ""), 0, platform=self.platform).to_json()["platform"],
            "disk": {
                "size": self.disk_size,
                "digest": str(self.disk_digest),
                "uuid": self.disk_uuid,
                "slots": [{"name": s.name, "offset": s.offset, "length": s.length} for s in self.slots],
                "layers": [{"diff_id": layer.diff_id, "first_inode": layer.first} for layer in self.layers],
                **({"left_out": dict(self.left_out)} if self.left_out else {}),
                **({"verity": self.verity.to_json()} if self.verity else {}),
            },
            "process": self.process.to_json(),
            "boot": {
                "cmdline": self.cmdline,
                "memory_mib": self.memory_mib,
                "cpus": self.cpus,
                "chunks": list(self.boot_chunks),
                **({"template": self.template} if self.template else {}),
                **({"vmlinux": self.vmlinux.to_json()} if self.vmlinux else {}),
            },
            "derivation": {"key": self.derivation_key, "inputs": dict(self.inputs)},
            "source": {"reference": self.source, "digest": self.source_digest},
            "writer": dict(self.writer),
            "labels": dict(self.labels or {}),
            **({"network": {"allow": list(self.allow)}} if self.allow else {}),
        }

    def slot(self, name: str = "slot") -> SlotExtent:
        """Return the slot `name`. BadInput: the disk has none."""
        for slot in self.slots:
            if slot.name == name:
                return slot
        raise BadInput(f"the disk has no slot {name!r}", "build it without --plain")


class NotAnArtifact(BadInput):
    """A manifest of another kind, for example a source image's."""


class ArtifactManifest(NamedTuple):
    """An artifact's blobs by role; the zstd file of the disk is all of `disk`, one after the other."""

    config: Descriptor
    disk: tuple[Descriptor, ...]
    chunks: Descriptor
    kernel: Descriptor | None
    initramfs: Descriptor | None
    verity: Descriptor | None = None
    vmlinux: Descriptor | None = None

    @classmethod
    def parse(cls, raw: bytes) -> ArtifactManifest:
        """Parse the manifest `raw`; BadInput if it is not a rootdisk artifact's."""
        return cls.of(Manifest.parse(raw))

    @classmethod
    def of(cls, manifest: Manifest) -> ArtifactManifest:
        """Find the roles in `manifest`; BadInput if it is not a rootdisk artifact's."""
        if manifest.artifact_type != ARTIFACT_TYPE:
            kind = manifest.artifact_type or manifest.config.media_type
            raise NotAnArtifact(
                f"not a rootdisk artifact but {printable(kind, 120)}",
                "build one from it: imagetool build SOURCE oci:DIR:TAG, then use oci:DIR:TAG",
            )

        def one(media_type: str) -> Descriptor | None:
            """Return the blob of a type, or None. BadInput: there are several."""
            blobs = [layer for layer in manifest.layers if layer.media_type == media_type]
            if len(blobs) > 1:
                raise BadInput(f"artifact manifest: {len(blobs)} blobs of type {media_type}")
            return blobs[0] if blobs else None

        disk = tuple(layer for layer in manifest.layers if layer.media_type == DISK_TYPE)
        chunks = one(CHUNKS_TYPE)
        if not disk or chunks is None or manifest.config.media_type != CONFIG_TYPE:
            raise BadInput("artifact manifest: config, disk or chunk index is missing", "the artifact is damaged")
        optional = (one(kind) for kind in (KERNEL_TYPE, INITRAMFS_TYPE, VERITY_TYPE, VMLINUX_TYPE))
        return cls(manifest.config, disk, chunks, *optional)

    @property
    def extras(self) -> tuple[Descriptor, ...]:
        """The blobs beside the disk's: chunk index, and what there is of kernel, initramfs, dm-verity tree and vmlinux."""
        optional = (self.kernel, self.initramfs, self.verity, self.vmlinux)
        return (self.chunks, *(blob for blob in optional if blob is not None))

    @property
    def disk_bytes(self) -> int:
        """The zstd file's length in bytes."""
        return sum(blob.size for blob in self.disk)


def key_tag(derivation_key: str) -> str:
    """Return the tag under which a registry serves as the build cache."""
    return KEY_TAG_PREFIX + derivation_key[:KEY_TAG_DIGITS]
