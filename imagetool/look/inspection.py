"""What is in a source image, an artifact or a disk, without mounting or unpacking anything.

    opened("oci:cache/artifacts/demo:1", …) as found:  found.reader, and for an artifact found.config
    listing(found, path), details(found, path), content(found, path)
    compared(a, b)                                     differences by file

Values out are plain, for people and JSON alike; names are bytes decoded with what is no text escaped, so that no name
in an image controls a terminal.
"""

from __future__ import annotations

import contextlib
import hashlib
import stat
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from imagetool.ext4.reader import Node, Reader
from imagetool.sources.open import open_source
from rootdisk.artifact.format import ArtifactConfig, NotAnArtifact
from rootdisk.artifact.published import PublishedArtifact, open_artifact
from rootdisk.errors import BadInput
from rootdisk.ids import id_or_none
from rootdisk.oci.documents import INDEX_TYPES, Index, Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.places import open_repository
from rootdisk.text import printable

_NAME_MAX = 1 << 20  # characters: more than ten for each byte of the longest path

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
HASHED_MAX_BYTES = 64 << 30  # a layer has no more; 16 TiB of a hole would take hours


@dataclass(frozen=True, slots=True)
class Found:
    """A disk that can be read, and the config of the artifact it is in, if any."""

    reader: Reader
    config: ArtifactConfig | None = None

    @classmethod
    def of(cls, artifact: PublishedArtifact) -> Found:
        """The disk of an open artifact."""
        return cls(Reader(artifact.disk()), artifact.config)

    def layer(self, node: Node) -> str:
        """The diff ID of the layer that brought the inode; "" where that is not known."""
        layers = self.config.layers if self.config is not None else ()
        place = bisect_right([layer.first for layer in layers], node.number) - 1
        return layers[place].diff_id if place >= 0 else ""


@contextlib.contextmanager
def opened(what: str, platform: Platform, options: RegistryOptions) -> Iterator[Found]:
    """The raw disk in file `what`, or the disk of the artifact it refers to, of which only what is read is fetched."""
    if Path(what).is_file():
        with Reader.open(Path(what)) as reader:
            yield Found(reader)
        return
    with open_artifact(parse_reference(what), platform, options) as artifact:
        yield Found.of(artifact)


def listing(found: Found, path: bytes, *, recursive: bool = False) -> Iterator[tuple[bytes, Node]]:
    """A directory's names with their inodes in bytewise order, with all below for `recursive`; a file alone is itself."""
    top = found.reader.lookup(path, follow=not recursive)
    if recursive or top.type != stat.S_IFDIR:
        yield from found.reader.walk(path)
        return
    for name, number, _ in sorted(found.reader.entries(top)):
        yield name, found.reader.node(number)


def row(found: Found, name: bytes, node: Node) -> str:
    """One line, as `tar -tv` and `ls -l` have it; times are UTC."""
    size = "{},{}".format(*node.device) if node.type in (stat.S_IFCHR, stat.S_IFBLK) else str(node.size)
    target = f" -> {shown(found.reader.target(node))}" if node.type == stat.S_IFLNK else ""
    return f"{stat.filemode(node.mode)} {node.links:>3} {node.uid}:{node.gid} {size:>9} {when(node)[:19]} {shown(name)}{target}"


def details(found: Found, path: bytes) -> dict[str, Any]:
    """Everything about the inode at `path`, whose last name is not followed."""
    reader = found.reader
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
        "layer": found.layer(node),
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


def content(reader: Reader, node: Node) -> Iterator[bytes]:
    """A file's bytes in pieces, holes as zeros."""
    at = 0
    for offset, data in reader.data(node):
        yield from _zeros(offset - at)
        yield data
        at = offset + len(data)
    yield from _zeros(node.size - at)


def _zeros(count: int) -> Iterator[bytes]:
    piece = bytes(1 << 20)
    while count > 0:
        yield piece[:count]
        count -= len(piece)


def digest(reader: Reader, node: Node) -> str:
    """The sha256 of a file's bytes; of one that is mostly a hole, past 64 GiB, that of its blocks with data and their places."""
    found = hashlib.sha256()
    if node.size <= HASHED_MAX_BYTES:
        for data in content(reader, node):
            found.update(data)
        return found.hexdigest()
    for offset, data in reader.data(node):
        for at in range(0, len(data), reader.block_size):
            block = data[at : at + reader.block_size]
            if block.count(0) != len(block):
                found.update((offset + at).to_bytes(8, "little") + block)
    return found.hexdigest()


class _Digests:
    """Digests of two disks' files: one with many names is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[str, str]] = {}

    def of(self, a: Reader, old: Node, b: Reader, new: Node) -> tuple[str, str]:
        if min(old.links, new.links) < 2:
            return digest(a, old), digest(b, new)
        key = old.number, new.number
        if key not in self._known:
            self._known[key] = digest(a, old), digest(b, new)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Change:
    """One path: `kind` is added, removed or changed; `what` says how it was and is, by property."""

    path: str
    kind: str
    what: dict[str, tuple[str, str]]


def compared(a: Found, b: Found) -> Iterator[Change]:
    """Every path that is not the same on both disks, in bytewise order."""
    digests = _Digests()
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
            what = _differences(a.reader, old[1], b.reader, new[1], digests)
            if what:
                yield Change(shown(old[0]), "changed", what)
            old, new = next(left, None), next(right, None)


def _parts(path: bytes) -> list[bytes]:
    return path.split(b"/")


def _differences(a: Reader, old: Node, b: Reader, new: Node, digests: _Digests) -> dict[str, tuple[str, str]]:
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
                pairs["sha256" if old.size <= HASHED_MAX_BYTES else "sha256_of_data"] = digests.of(a, old, b, new)
        elif old.type == stat.S_IFLNK:
            pairs["target"] = (shown(a.target(old)), shown(b.target(new)))
        elif old.type in (stat.S_IFCHR, stat.S_IFBLK):
            pairs["device"] = ("{}:{}".format(*old.device), "{}:{}".format(*new.device))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _attributes(reader: Reader, node: Node) -> str:
    return ", ".join(f"{shown(name)}={shown(data)}" for name, data in sorted(reader.xattrs(node).items()))


def _names(reader: Reader, path: bytes) -> dict[int, str]:
    """Numbers and names of passwd or group on the disk; nothing if it cannot be read."""
    try:
        node = reader.lookup(path, follow=True)
        if node.type != stat.S_IFREG or node.size > ACCOUNTS_MAX_BYTES:
            return {}
        lines = b"".join(content(reader, node)).splitlines()
    except BadInput:
        return {}
    fields = (line.split(b":") for line in lines)
    numbers = ((id_or_none(part[2].decode("ascii", "replace")), part[0]) for part in fields if len(part) > 2)
    return {id_: shown(name) for id_, name in numbers if id_ is not None}


def when(node: Node) -> str:
    """The time of the last modification, ISO 8601 in UTC with nanoseconds."""
    seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds:09}Z"


def shown(name: bytes) -> str:
    """A name as text, whole: what is not printable, and the backslash, as escapes."""
    return printable(name, limit=_NAME_MAX)


def described(what: str, platform: Platform, options: RegistryOptions) -> dict[str, Any]:
    """A raw disk, an artifact or a source image, as one JSON value whose `kind` says which."""
    if Path(what).is_file():
        with Reader.open(Path(what)) as reader:
            return _disk(reader)
    reference = parse_reference(what)
    if reference.kind in ("registry", "oci"):
        found = _published(reference, platform, options)
        if found is not None:
            return found
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
    """The artifact that `reference` names; None where it names something else."""
    try:
        with open_artifact(reference, platform, options) as artifact:
            digest, size = str(artifact.descriptor.digest), artifact.roles.disk_bytes
            return {"kind": "artifact", "digest": digest, "compressed": size, **artifact.config.to_json()}
    except NotAnArtifact:
        return None


def _platforms(reference: Reference, options: RegistryOptions) -> list[str]:
    """What an index offers; nothing where there is none."""
    if reference.kind not in ("registry", "oci"):
        return []
    repository = open_repository(reference, options)
    try:
        found = repository.resolve(reference.name)
        if found.media_type not in INDEX_TYPES:
            return []
        manifests = Index.parse(repository.manifest(found)).manifests
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
