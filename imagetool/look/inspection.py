"""Look into source images, artifacts and disks, without mounting or unpacking anything.

    opened("oci:cache/artifacts/demo:1", …) as disk:   disk.reader, and for an artifact disk.config
    listing(disk, path), details(disk, path), disk.reader.content(node)
    compared(a, b)                                     differences by file

Results are plain values for people and for JSON. Names are decoded, and everything unprintable in them is escaped, so that no
name in an image can control a terminal.
"""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from imagetool.ext4.reader import Node, Reader
from imagetool.look import contents
from imagetool.look.contents import Span
from imagetool.sources.open import open_source
from rootdisk.artifact.disk import FramedDisk
from rootdisk.artifact.format import ArtifactConfig, NotAnArtifact
from rootdisk.artifact.layers import layer_of
from rootdisk.artifact.published import PublishedArtifact, open_artifact
from rootdisk.errors import BadInput
from rootdisk.oci.documents import INDEX_TYPES, Index, Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.parsing.ids import id_or_none
from rootdisk.places import open_mirrored
from rootdisk.text import printable

_NAME_MAX = 1 << 20  # characters: over ten for each byte of the longest path

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}
ACCOUNTS_MAX_BYTES = 1 << 20
HASHED_MAX_BYTES = 64 << 30  # the limit of a layer; hashing a hole of 16 TiB would take hours


@dataclass(frozen=True, slots=True)
class InspectedDisk:
    """A readable disk, and the config of its artifact, if it is in one."""

    reader: Reader
    config: ArtifactConfig | None = None
    frames: FramedDisk | None = None  # the artifact's, if it is in one

    @classmethod
    def of(cls, artifact: PublishedArtifact) -> InspectedDisk:
        """Return the disk of an open artifact."""
        frames = artifact.disk()
        return cls(Reader(frames), artifact.config, frames)

    def spans(self, node: Node) -> list[Span] | None:
        """Describe a file's content by chunks, without fetching it: equal spans, equal bytes. None for a raw disk."""
        if self.frames is None:
            return None
        size, spans = self.reader.block_size, []
        for extent in self.reader.extents(node):
            start = extent.logical * size
            for sha256, offset, count in self.frames.content(extent.physical * size, extent.count * size):
                spans.append(Span(start, start + count, sha256, offset))
                start += count
        return spans

    def layer(self, node: Node) -> str:
        """Return the diff ID of the layer that an inode comes from, or "" if unknown."""
        return layer_of(self.config.layers if self.config is not None else (), node.number)


@contextlib.contextmanager
def opened(what: str, platform: Platform, options: RegistryOptions) -> Iterator[InspectedDisk]:
    """Open the raw disk in file `what`, or the disk of the artifact it refers to. Only the parts read are fetched."""
    if Path(what).is_file():
        with Reader.open(Path(what)) as reader:
            yield InspectedDisk(reader)
        return
    with opened_artifact(parse_reference(what), platform, options) as disk:
        yield disk


@contextlib.contextmanager
def opened_artifact(reference: Reference, platform: Platform, options: RegistryOptions) -> Iterator[InspectedDisk]:
    """Open the disk of an artifact. Only the parts read are fetched."""
    with open_artifact(reference, platform, options) as artifact:
        yield InspectedDisk.of(artifact)


def listing(disk: InspectedDisk, path: bytes, *, recursive: bool = False) -> Iterator[tuple[bytes, Node]]:
    """Yield the names and inodes of a directory, sorted by bytes; with `recursive` everything below. A file yields itself."""
    top = disk.reader.lookup(path, follow=not recursive)
    if recursive or top.type != stat.S_IFDIR:
        yield from disk.reader.walk(path)
        return
    for name, number, _ in sorted(disk.reader.entries(top)):
        yield name, disk.reader.node(number)


def row(disk: InspectedDisk, name: bytes, node: Node) -> str:
    """Format an entry like `tar -tv` and `ls -l`; times are UTC."""
    size = "{},{}".format(*node.device) if node.type in (stat.S_IFCHR, stat.S_IFBLK) else str(node.size)
    target = f" -> {shown(disk.reader.target(node))}" if node.type == stat.S_IFLNK else ""
    return f"{stat.filemode(node.mode)} {node.links:>3} {node.uid}:{node.gid} {size:>9} {when(node)[:19]} {shown(name)}{target}"


def details(disk: InspectedDisk, path: bytes) -> dict[str, Any]:
    """Return everything about the inode at `path`. A link in the last component is not followed."""
    reader = disk.reader
    node = reader.lookup(path)
    users, groups = _names(reader, b"/etc/passwd"), _names(reader, b"/etc/group")
    value: dict[str, Any] = {
        "path": "/" + shown(path.strip(b"/")),
        "type": TYPES.get(node.type, "unknown"),
        "mode": f"{stat.S_IMODE(node.mode):04o}",
        "uid": node.uid,
        "gid": node.gid,
        "user": users.get(node.uid, ""),
        "group": groups.get(node.gid, ""),
        "size": node.size,
        "allocated": node.blocks * 512,
        "modified": when(node),
        "links": node.links,
        "inode": node.number,
        "layer": disk.layer(node),
        "xattrs": {shown(name): shown(data) for name, data in sorted(reader.xattrs(node).items())},
    }
    if node.type == stat.S_IFLNK:
        value["target"] = shown(reader.target(node))
    elif node.type in (stat.S_IFCHR, stat.S_IFBLK):
        value["device"] = "{}:{}".format(*node.device)
    elif node.type == stat.S_IFREG:
        value["sha256" if node.size <= HASHED_MAX_BYTES else "sha256_of_data"] = digest(reader, node)
        value["extents"] = [
            {"offset": e.logical * reader.block_size, "disk": e.physical * reader.block_size,
             "length": e.count * reader.block_size} for e in reader.extents(node)
        ]  # fmt: skip
    return value


def digest(reader: Reader, node: Node) -> str:
    """Return the sha256 of a file. Above 64 GiB, hash only blocks with data and their offsets."""
    sha256 = hashlib.sha256()
    if node.size <= HASHED_MAX_BYTES:
        for data in reader.content(node):
            sha256.update(data)
        return sha256.hexdigest()
    for offset, data in reader.data(node):
        for at in range(0, len(data), reader.block_size):
            block = data[at : at + reader.block_size]
            if block.count(0) != len(block):
                sha256.update((offset + at).to_bytes(8, "little") + block)
    return sha256.hexdigest()


class _Contents:
    """Compares contents of files on two disks. A file with many names is read once, one in equal chunks not at all."""

    def __init__(self, a: InspectedDisk, b: InspectedDisk) -> None:
        self._a, self._b = a, b
        self._known: dict[tuple[int, int], dict[str, tuple[str, str]]] = {}

    def compared(self, old: Node, new: Node) -> dict[str, tuple[str, str]]:
        """Return a pair for two files of one size that differ: digests, or, if that needs less, the first difference."""
        if min(old.links, new.links) < 2:
            return self._pair(old, new)
        numbers = old.number, new.number
        if numbers not in self._known:
            self._known[numbers] = self._pair(old, new)
        return self._known[numbers]

    def _pair(self, old: Node, new: Node) -> dict[str, tuple[str, str]]:
        first, second = self._a.spans(old), self._b.spans(new)
        if first is not None and first == second:
            return {}
        if first is not None and second is not None:
            files = contents.File(self._a.reader, old, first), contents.File(self._b.reader, new, second)
            if contents.shares(*files):
                different = contents.first_difference(*files)
                if different is None:
                    return {}
                at, *data = different
                left, right = (f"{piece.hex()} at byte {at}" for piece in data)
                return {"content": (left, right)}
        name = "sha256" if old.size <= HASHED_MAX_BYTES else "sha256_of_data"
        return {name: (digest(self._a.reader, old), digest(self._b.reader, new))}


@dataclass(frozen=True, slots=True)
class Change:
    """A changed path: `kind` is added, removed or changed; `what` has old and new value by property."""

    path: str
    kind: str
    what: dict[str, tuple[str, str]]


def compared(a: InspectedDisk, b: InspectedDisk) -> Iterator[Change]:
    """Yield every path that differs between the disks, sorted by bytes. Chunks that both have are fetched once at most."""
    both = _Contents(a, b)
    if a.frames is not None and b.frames is not None:
        b.frames.share(a.frames)
    left, right = a.reader.walk(), b.reader.walk()
    old, new = next(left, None), next(right, None)
    while old is not None or new is not None:
        if new is None or (old is not None and _parts(old[0]) < _parts(new[0])):
            assert old is not None
            yield Change(shown(old[0]), "removed", {})
            old = next(left, None)
        elif old is None or _parts(new[0]) < _parts(old[0]):
            yield Change(shown(new[0]), "added", {})
            new = next(right, None)
        else:
            what = _differences(a.reader, old[1], b.reader, new[1], both)
            if what:
                yield Change(shown(old[0]), "changed", what)
            old, new = next(left, None), next(right, None)


def _parts(path: bytes) -> list[bytes]:
    return path.split(b"/")


def _differences(a: Reader, old: Node, b: Reader, new: Node, both: _Contents) -> dict[str, tuple[str, str]]:
    pairs = {
        "type": (TYPES.get(old.type, "unknown"), TYPES.get(new.type, "unknown")),
        "mode": (f"{stat.S_IMODE(old.mode):04o}", f"{stat.S_IMODE(new.mode):04o}"),
        "owner": (f"{old.uid}:{old.gid}", f"{new.uid}:{new.gid}"),
        "modified": (when(old), when(new)),
        "xattrs": (_attributes(a, old), _attributes(b, new)),
    }
    if old.type == new.type:
        if old.type != stat.S_IFDIR:
            pairs["links"] = (str(old.links), str(new.links))
        if old.type == stat.S_IFREG:
            pairs["size"] = (str(old.size), str(new.size))
            if old.size == new.size:
                pairs |= both.compared(old, new)
        elif old.type == stat.S_IFLNK:
            pairs["target"] = (shown(a.target(old)), shown(b.target(new)))
        elif old.type in (stat.S_IFCHR, stat.S_IFBLK):
            pairs["device"] = ("{}:{}".format(*old.device), "{}:{}".format(*new.device))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _attributes(reader: Reader, node: Node) -> str:
    return ", ".join(f"{shown(name)}={shown(data)}" for name, data in sorted(reader.xattrs(node).items()))


def _names(reader: Reader, path: bytes) -> dict[int, str]:
    """Return names by number from passwd or group on the disk; {} if it cannot be read."""
    try:
        node = reader.lookup(path, follow=True)
        if node.type != stat.S_IFREG or node.size > ACCOUNTS_MAX_BYTES:
            return {}
        lines = b"".join(reader.content(node)).splitlines()
    except BadInput:
        return {}
    fields = (line.split(b":") for line in lines)
    numbers = ((id_or_none(part[2].decode("ascii", "replace")), part[0]) for part in fields if len(part) > 2)
    return {id_: shown(name) for id_, name in numbers if id_ is not None}


def when(node: Node) -> str:
    """Format the modification time: ISO 8601 in UTC with nanoseconds."""
    seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds:09}Z"


def shown(name: bytes) -> str:
    """Return a complete name as text, with backslash and unprintable bytes escaped."""
    return printable(name, limit=_NAME_MAX)


def described(what: str, platform: Platform, options: RegistryOptions) -> dict[str, Any]:
    """Describe a raw disk, an artifact or a source image as a JSON value; `kind` says which it is."""
    if Path(what).is_file():
        with Reader.open(Path(what)) as reader:
            return _disk(reader)
    reference = parse_reference(what)
    if reference.kind in ("registry", "oci"):
        artifact = _published(reference, platform, options)
        if artifact is not None:
            return artifact
    with open_source(what, platform, options) as source:
        config = source.config
        return {
            "kind": "image",
            "digest": str(source.manifest_digest),
            "platform": str(config.platform),
            "platforms": _platforms(reference, options),
            "layers": [
                {
                    "digest": str(layer.descriptor.digest),
                    "diff_id": str(layer.diff_id) if layer.diff_id else "",
                    "media_type": layer.descriptor.media_type,
                    "size": layer.descriptor.size,
                }
                for layer in source.layers
            ],
            "env": list(config.env),
            "process": config.process.to_json(),
            "labels": dict(config.labels),
        }


def _published(reference: Reference, platform: Platform, options: RegistryOptions) -> dict[str, Any] | None:
    """Describe the artifact that `reference` names, or return None if it names something else."""
    try:
        with open_artifact(reference, platform, options) as artifact:
            digest, size = str(artifact.descriptor.digest), artifact.roles.disk_bytes
            traced = artifact.config.boot_chunks
            sizes = {"compressed": size, **({"boot_compressed": _boot_bytes(artifact)} if traced else {})}
            return {"kind": "artifact", "digest": digest, **sizes, **artifact.config.to_json()}
    except NotAnArtifact:
        return None


def _boot_bytes(artifact: PublishedArtifact) -> int:
    """Return how many bytes of the blobs a traced boot reads."""
    chunks = artifact.index.chunks
    return sum(chunks[number].blob_length for number in set(artifact.config.boot_chunks) if number < len(chunks))


def _platforms(reference: Reference, options: RegistryOptions) -> list[str]:
    """Return the platforms of an index; [] if it is not one."""
    if reference.kind not in ("registry", "oci"):
        return []
    repository = open_mirrored(reference, options)
    try:
        descriptor = repository.resolve(reference.name)
        if descriptor.media_type not in INDEX_TYPES:
            return []
        manifests = Index.parse(repository.manifest(descriptor)).manifests
        return sorted(str(item.platform) for item in manifests if item.platform is not None)
    finally:
        repository.close()


def _disk(reader: Reader) -> dict[str, Any]:
    return {
        "kind": "disk",
        "size": reader.blocks * reader.block_size,
        "free": reader.free_blocks * reader.block_size,
        "inodes": reader.inodes,
        "free_inodes": reader.free_inodes,
        "uuid": str(UUID(bytes=reader.uuid)),
        "block_size": reader.block_size,
    }
