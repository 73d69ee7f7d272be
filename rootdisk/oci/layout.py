"""Read an OCI image layout directory (image-spec image-layout.md).

A layout is as untrusted as a registry. Only `oci-layout`, `index.json` and `blobs/ALGORITHM/HEX` are opened, each relative
to a directory descriptor and without following symbolic links. So no name in a layout leads to another file of the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from rootdisk.errors import BadInput, DigestMismatch, NotThere, RootdiskError, Unsupported
from rootdisk.oci.documents import MANIFEST_MAX_BYTES, Descriptor, Digest, Index, parse_json
from rootdisk.oci.referrers import belongs_to_digest, in_layout
from rootdisk.oci.repository import SeveralImages, check_manifest, check_range, describe_manifest

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = (
    "io.containerd.image.name"  # the whole name, where containerd and Docker write several images: REF_NAME is the tag
)
_PIECE_BYTES = 256 << 10  # stays in the processor's cache until it is hashed and sent


class LayoutRepository:
    """An OCI layout directory, read only. See the protocol `Repository` for its methods."""

    serves_ranges = True

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise BadInput(f"oci:{path}: {err.strerror}", "is it the directory of an OCI layout?") from err
        try:
            version = parse_json(self._read("oci-layout", 4096), f"oci:{path}: oci-layout").get("imageLayoutVersion")
            if version != "1.0.0":
                raise Unsupported(f"oci:{path}: OCI layout version {version!r:.20}", "only 1.0.0 is supported")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the directory."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def interrupt(self) -> None:
        """Do nothing: reads of files need no interruption."""

    def index_json(self) -> bytes:
        """Read index.json."""
        return self._read("index.json", MANIFEST_MAX_BYTES)

    def index(self) -> Index:
        """Read and parse index.json."""
        return read_index(self.index_json(), f"oci:{self._path}")

    def resolve(self, name: str | Digest) -> Descriptor:
        """Return the manifest or index with this tag or digest; "" means the only one in the layout."""
        return find(self.index(), name, f"oci:{self._path}", self._describe)

    def _describe(self, digest: Digest) -> Descriptor:
        """Describe a manifest that index.json does not list, for example one in a nested index."""
        return describe_manifest(self.manifest(digest), digest, f"oci:{self._path}")

    def current(self, name: str | Digest) -> Digest | None:
        """Find which manifest `name` is now; None if it is not there, or its bytes are others."""
        try:
            digest = self.resolve(name).digest
            self.manifest(digest)
            return digest
        except (NotThere, DigestMismatch):
            return None

    def manifest(self, wanted: Descriptor | Digest) -> bytes:
        """Read a manifest or index and check its digest."""
        digest = wanted.digest if isinstance(wanted, Descriptor) else wanted
        raw = self._read(blob_name(digest), MANIFEST_MAX_BYTES)
        return check_manifest(raw, digest, f"oci:{self._path}")

    def referrers(self, subject: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """List the manifests that are attached to `subject`."""
        return in_layout(self.index(), REF_NAME, subject, artifact_type, self.manifest)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a blob in pieces, not verified. The size of the blob is checked."""
        stop = check_range(descriptor, start, end)
        file = self._open(blob_name(descriptor.digest))
        try:
            size = os.fstat(file).st_size
            if size != descriptor.size:
                raise DigestMismatch(
                    f"oci:{self._path}: blob {descriptor.digest} has {size} bytes, not {descriptor.size}",
                    "the layout is damaged; copy it again",
                )
            while start < stop:
                piece = read_at(
                    file, min(_PIECE_BYTES, stop - start), start, f"oci:{self._path}: {blob_name(descriptor.digest)}"
                )
                if not piece:
                    raise DigestMismatch(f"oci:{self._path}: blob {descriptor.digest} ends at {start}")
                start += len(piece)
                yield piece
        finally:
            os.close(file)

    def _read(self, name: str, max_bytes: int) -> bytes:
        file = self._open(name)
        with os.fdopen(file, "rb") as stream:
            raw = stream.read(max_bytes + 1)
        if len(raw) > max_bytes:
            raise BadInput(f"oci:{self._path}: {name} has more than the {max_bytes} bytes allowed")
        return raw

    def _open(self, name: str) -> int:
        """Open a regular file of the layout. No component of `name` may be a link."""
        *directories, last = name.split("/")
        parent = os.dup(self._directory)
        part = ""
        try:
            for part in directories:
                child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                os.close(parent)
                parent = child
            # O_NONBLOCK: opening a FIFO would block.
            part = last
            file = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError as err:
            if _is_link(part, parent):
                raise BadInput(
                    f"oci:{self._path}: {part} is a symbolic link, and links in a layout are not followed",
                    f"copy what they lead to: cp -rL {self._path} NEW",
                ) from err
            kind = NotThere if isinstance(err, FileNotFoundError) else BadInput
            raise kind(
                f"oci:{self._path}: {name}: {err.strerror}", "the layout is incomplete, or this is not an OCI layout"
            ) from err
        finally:
            os.close(parent)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise BadInput(f"oci:{self._path}: {name} is not a regular file")
        return file


def _is_link(name: str, parent: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def read_at(file: int, max_bytes: int, offset: int, where: str) -> bytes:
    """Read from an open file. Errors name `where`: the caller may be writing to a network or a disk at the same time."""
    try:
        return os.pread(file, max_bytes, offset)
    except OSError as err:
        raise RootdiskError(f"{where}: {err.strerror}") from err


def blob_name(digest: Digest) -> str:
    """Return the path of a blob in a layout. It is safe: a Digest contains only a known algorithm and hex digits."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def read_index(raw: bytes, where: str) -> Index:
    """Parse index.json. Errors name the layout `where`."""
    try:
        return Index.parse(raw)
    except BadInput as err:
        raise type(err)(f"{where}: index.json: {err.message}", err.hint) from err


def find(index: Index, name: str | Digest, where: str, describe: Callable[[Digest], Descriptor]) -> Descriptor:
    """Find a tag or digest in the index.json of the layout `where`; "" means the only image.

    `describe` is called for a digest that index.json does not list.

    Raises:
        SeveralImages: It is one image for several platforms.
        BadInput: The layout does not have the image, or has several.
    """
    if isinstance(name, Digest):
        return next((item for item in index.manifests if item.digest == name), None) or describe(name)
    tags = sorted({tag for item in index.manifests for tag in _names(item)})
    offered = f"it has {', '.join(tags[:20])}{' …' if len(tags) > 20 else ''}" if tags else "it has no tags"
    candidates = [item for item in index.manifests if name in _names(item)] if name else _images(index)
    if not candidates:
        raise NotThere(f"{where}: no tag {name!r}" if name else f"{where}: holds no image", offered)
    if len({item.digest for item in candidates}) > 1:
        message = f"{where}: {f'tag {name!r} is' if name else 'there are'} several images"
        if len({item.platform for item in candidates} - {None}) == len(candidates):
            raise SeveralImages(message, offered, tuple(candidates))
        raise BadInput(message, offered)
    return candidates[0]


def _names(item: Descriptor) -> tuple[str, ...]:
    return tuple(tag for key in (REF_NAME, IMAGE_NAME) if (tag := item.annotations.get(key)))


def _images(index: Index) -> list[Descriptor]:
    """List the entries that a reference without a tag may mean: all but those attached to an image."""
    images = [
        item
        for item in index.manifests
        if not (item.artifact_type and REF_NAME not in item.annotations)
        and not belongs_to_digest(item.annotations.get(REF_NAME, ""))
    ]
    return images or list(index.manifests)
