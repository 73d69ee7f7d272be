"""Images inside tar files, read in place: an OCI layout in a tar (oci-archive), and what `docker save` writes.

The tar's members are looked up by name and read at their offset; nothing is unpacked, and links are followed inside the
tar only. A compressed archive is first inflated to an unnamed temporary file.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from imagetool.sources.image_config import ImageConfig, any_case
from imagetool.tree.decompression import Damaged, UnknownCompression, decompressed
from imagetool.tree.index import FILE, LINK, SYMLINK
from imagetool.tree.remarks import Remark
from imagetool.tree.tar import scan
from rootdisk.compression import HEAD_BYTES, compression
from rootdisk.errors import BadInput, DigestMismatch, NotThere, Unsupported
from rootdisk.oci.documents import (
    MANIFEST_MAX_BYTES,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    canonical_json,
    parse_json,
)
from rootdisk.oci.fields import parse_value
from rootdisk.oci.layout import REF_NAME, blob_name, find, read_at, read_index
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.referrers import in_layout
from rootdisk.oci.repository import check_manifest, check_range, describe_manifest
from rootdisk.text import printable

ARCHIVE_MAX_BYTES = 256 << 30  # of a compressed archive once inflated
MEMBERS_MAX_COUNT = 100_000
LINKS_MAX_DEPTH = 8
PIECE_BYTES = 1 << 20
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"


class TarArchive:
    """A tar's regular files and links by normalised name; a later member wins, as when unpacking."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.where = where
        self._file = _plain(file, where)
        self._members: dict[str, tuple[int, int] | str] = {}  # offset and length, or the name a link leads to
        self._sparse: set[str] = set()
        try:
            index = scan(self._file.fileno(), os.fstat(self._file.fileno()).st_size, where)
        except BadInput as err:
            raise type(err)(err.message.removeprefix("layer "), "is it damaged, or of another kind?") from err
        if len(index) > MEMBERS_MAX_COUNT:
            raise BadInput(f"{where}: more than {MEMBERS_MAX_COUNT} members")
        for kind, _, _, _, _, offset, length, path, target, _, segments in index:
            name = os.fsdecode(path)
            if kind == SYMLINK:
                self._members[name] = _inside(posixpath.join(posixpath.dirname(name), os.fsdecode(target)))
            elif kind == LINK:
                self._members[name] = os.fsdecode(target)
            elif kind == FILE and segments is None:
                self._members[name] = offset, length
            elif kind == FILE:
                self._sparse.add(name)

    @classmethod
    def open(cls, path: Path, where: str) -> TarArchive:
        """Open the archive `path`; errors name it `where`."""
        return cls(open_regular(path, where), where)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return _inside(name) in self._members

    def locate(self, name: str, *, links: bool = True) -> tuple[int, int]:
        """Offset and length of a member's bytes in the tar."""
        path: str | None = _inside(name)
        for _ in range(LINKS_MAX_DEPTH if links else 1):
            at = self._members.get(str(path))
            if isinstance(at, tuple):
                return at
            if path in self._sparse:
                raise Unsupported(f"{self.where}: {name!r:.200} is a sparse file", "make the archive without --sparse")
            path = self._behind_link(str(path)) if at is None else at
            if path is None:
                break
        raise BadInput(f"{self.where}: no file {name!r:.200} in it", "the archive is not complete, or of another kind")

    def _behind_link(self, path: str) -> str | None:
        """Return where `path` leads to if one of its directories is a link."""
        for end, letter in enumerate(path):
            target = self._members.get(path[:end]) if letter == "/" else None
            if isinstance(target, str):
                return _inside(target + path[end:])
        return None

    def pieces(self, name: str, start: int = 0, stop: int | None = None, *, links: bool = True) -> Iterator[bytes]:
        """Bytes [start, stop) of a member."""
        offset, length = self.locate(name, links=links)
        stop = length if stop is None else stop
        while start < stop:
            piece = read_at(self._file.fileno(), min(PIECE_BYTES, stop - start), offset + start, self.where)
            if not piece:
                raise BadInput(f"{self.where}: ends inside {name!r:.200}", "the archive is cut short")
            start += len(piece)
            yield piece

    def read(self, name: str, max_bytes: int = MANIFEST_MAX_BYTES, *, links: bool = True) -> bytes:
        """Return the content of a member. BadInput if it has more than `max_bytes`."""
        length = self.locate(name, links=links)[1]
        if length > max_bytes:
            raise BadInput(f"{self.where}: {name!r:.200} has more than the {max_bytes} bytes allowed")
        return b"".join(self.pieces(name, links=links))


class ArchiveRepository:
    """The OCI layout in a tar, as a Repository."""

    serves_ranges = True

    def __init__(self, archive: TarArchive) -> None:
        self._archive = archive
        parse_json(archive.read("oci-layout", 4096), f"{archive.where}: oci-layout")

    def interrupt(self) -> None:
        """Do nothing: reads of files need no interruption."""

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()

    def index(self) -> Index:
        """Read and parse index.json."""
        return read_index(self._archive.read("index.json", links=False), self._archive.where)

    def resolve(self, name: str | Digest) -> Descriptor:
        """Return the manifest or index with this tag or digest."""
        where = self._archive.where
        return find(self.index(), name, where, lambda digest: describe_manifest(self.manifest(digest), digest, where))

    def current(self, name: str | Digest) -> Digest | None:
        """Return the digest that a tag names now, or None."""
        try:
            return self.resolve(name).digest
        except NotThere:
            return None

    def manifest(self, wanted: Descriptor | Digest) -> bytes:
        """Return a manifest or index, digest checked."""
        digest = wanted.digest if isinstance(wanted, Descriptor) else wanted
        return check_manifest(self._archive.read(blob_name(digest), links=False), digest, self._archive.where)

    def referrers(self, subject: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """List the manifests that are attached to `subject`."""
        return in_layout(self.index(), REF_NAME, subject, artifact_type, self.manifest)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a blob in pieces, not verified."""
        stop = check_range(descriptor, start, end)
        name = blob_name(descriptor.digest)
        length = self._archive.locate(name, links=False)[1]
        if length != descriptor.size:
            raise DigestMismatch(
                f"{self._archive.where}: blob {descriptor.digest} has {length} bytes, not {descriptor.size}"
            )
        return self._archive.pieces(name, start, stop, links=False)


class DockerArchive:
    """An image of a `docker save` archive, in old form (ID/layer.tar) or new (blobs/), both through manifest.json.

    Such an archive names its layers by diff ID only, so manifest and descriptors are made up here from what is in it:
    the same archive content gives the same digests.
    """

    def __init__(self, archive: TarArchive, tag: str) -> None:
        self._archive = archive
        if "repositories" in archive and "manifest.json" not in archive:
            raise Unsupported(
                f"{archive.where}: an archive of Docker 1.9 or older", "docker load it, and docker save it again"
            )
        if "manifest.json" not in archive:
            raise BadInput(f"{archive.where}: no manifest.json", "for an OCI layout write oci-archive:FILE")
        entry = _choose(archive, tag)
        name = str(entry.get("config"))
        config_raw = archive.read(name)
        named = re.search(r"(?:\A|/)([0-9a-f]{64})(?:\.json)?\Z", name)  # docker names it by its digest, and loads any
        changed = named is not None and Digest.of(config_raw).hex != named[1]
        text = f"{archive.where}: the config {printable(name, 100)} has another digest than its name says"
        self.remarks = (Remark(text),) if changed else ()
        names = entry.get("layers")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadInput(f"{archive.where}: manifest.json lists no layers", "the archive is damaged")
        self.config = ImageConfig.parse(config_raw)
        diff_ids = self.config.diff_ids
        if len(diff_ids) != len(names):
            raise BadInput(f"{archive.where}: {len(names)} layers, and {len(diff_ids)} diff_ids in the config")
        self._names: dict[Digest, str] = {}
        layers = tuple(self._layer(name, diff_id) for name, diff_id in zip(names, diff_ids, strict=True))
        config = Descriptor(OCI_CONFIG, Digest.of(config_raw), len(config_raw))
        self.manifest = Manifest(OCI_MANIFEST, "", config, layers, {})
        self.digest = Digest.of(canonical_json(self.manifest.to_json()))

    def _layer(self, name: str, diff_id: Digest | None) -> Descriptor:
        size = self._archive.locate(name)[1]
        head = b"".join(self._archive.pieces(name, 0, min(HEAD_BYTES, size)))
        digest = diff_id
        if digest is None or compression(head):
            hashed = hashlib.sha256()
            for piece in self._archive.pieces(name):
                hashed.update(piece)
            digest = Digest("sha256", hashed.hexdigest())
        self._names[digest] = name
        return Descriptor(PLAIN_LAYER, digest, size)

    def layer(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the bytes of a layer."""
        return self._archive.pieces(self._names[descriptor.digest])


def _choose(archive: TarArchive, tag: str) -> dict[str, Any]:
    """The entry of manifest.json that `tag` names, by docker's normalisation of names."""
    entries = parse_value(archive.read("manifest.json"), f"{archive.where}: manifest.json", MANIFEST_MAX_BYTES)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadInput(f"{archive.where}: manifest.json is not a list of images")
    entries = [any_case(entry) for entry in entries]
    tags = [name for entry in entries for name in _names(entry, archive.where)]
    if tag:
        wanted = str(parse_reference(tag, foreign=True))
        entries = [
            entry
            for entry in entries
            if any(str(parse_reference(name, foreign=True)) == wanted for name in _names(entry, archive.where))
        ]
    if len(entries) != 1:
        what = f"no image {tag!r:.200}" if tag else f"{len(entries)} images"
        raise BadInput(f"{archive.where}: {what} in it", f"it has {', '.join(tags)[:400] or 'no names'}")
    return cast(dict[str, Any], entries[0])


def _names(entry: dict[str, Any], where: str) -> list[str]:
    names = entry.get("repotags")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise BadInput(f"{where}: manifest.json: RepoTags is not a list of strings")
    return names or []


def _inside(name: str) -> str:
    """Return a name without leading slash and dots: `..` stops at the archive's root."""
    return posixpath.normpath("/" + name).lstrip("/")


def open_regular(path: Path, where: str) -> IO[bytes]:
    """Open a file of the user: links are followed, but must lead to a regular file."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as err:
        raise BadInput(f"{where}: {err.strerror}") from err
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadInput(f"{where}: not a regular file")
    return file


def _plain(file: IO[bytes], where: str) -> IO[bytes]:
    """Return `file` itself, or its inflated content in an unnamed temporary file."""
    if not compression(os.pread(file.fileno(), HEAD_BYTES, 0)):
        return file
    plain = tempfile.TemporaryFile()  # noqa: SIM115  the caller's to close
    try:
        count = 0
        for piece in decompressed(iter(lambda: file.read(PIECE_BYTES), b"")):
            count += len(piece)
            if count > ARCHIVE_MAX_BYTES:
                raise BadInput(f"{where}: more than {ARCHIVE_MAX_BYTES} bytes when inflated")
            plain.write(piece)
        plain.flush()
    except UnknownCompression as err:
        plain.close()
        raise Unsupported(f"{where}: compressed with {err}", "unpack it first") from err
    except (OSError, Damaged) as err:
        plain.close()
        raise BadInput(f"{where}: cannot be inflated: {err}") from err
    except BaseException:
        plain.close()
        raise
    finally:
        file.close()
    return plain
