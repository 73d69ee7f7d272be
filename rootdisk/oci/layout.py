"""Reading an OCI image layout directory (image-spec image-layout.md).

A layout is as hostile as a registry: only `oci-layout`, `index.json` and `blobs/ALGORITHM/HEX` are ever opened, each
relative to a descriptor of its directory and without following symbolic links, so no name inside leads to a host file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from rootdisk.errors import BadInput, DigestMismatch, Unsupported
from rootdisk.oci.documents import MANIFEST_MAX_BYTES, Descriptor, Digest, Index, parse_json
from rootdisk.oci.repository import check_manifest, check_range, describe_manifest

REF_NAME = "org.opencontainers.image.ref.name"
_PIECE_BYTES = 1 << 20


class LayoutRepository:
    """One OCI layout directory, read only."""

    ranges_ignored = False

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise BadInput(f"oci:{path}: {err.strerror}", "is it the directory of an OCI layout?") from err
        try:
            version = parse_json(self._read("oci-layout", 4096), f"oci:{path}: oci-layout").get("imageLayoutVersion")
            if version != "1.0.0":
                raise Unsupported(f"oci:{path}: OCI layout version {version!r:.20}", "only 1.0.0 is read")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def interrupt(self) -> None:
        """Nothing here waits."""

    def index_json(self) -> bytes:
        """The layout's index.json as it is now."""
        return self._read("index.json", MANIFEST_MAX_BYTES)

    def index(self) -> Index:
        return read_index(self.index_json(), f"oci:{self._path}")

    def resolve(self, name: str | Digest) -> Descriptor:
        return find(self.index(), name, f"oci:{self._path}", self._describe)

    def _describe(self, digest: Digest) -> Descriptor:
        """A manifest that index.json does not list, but an index inside may: found by its bytes."""
        return describe_manifest(self.manifest(digest), digest, f"oci:{self._path}")

    def manifest(self, wanted: Descriptor | Digest) -> bytes:
        digest = wanted.digest if isinstance(wanted, Descriptor) else wanted
        raw = self._read(blob_name(digest), MANIFEST_MAX_BYTES)
        return check_manifest(raw, digest, f"oci:{self._path}")

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
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
                piece = os.pread(file, min(_PIECE_BYTES, stop - start), start)
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
        """A descriptor of a regular file below the layout; every part of `name` is opened without following links."""
        *directories, last = name.split("/")
        parent = os.dup(self._directory)
        try:
            for part in directories:
                child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                os.close(parent)
                parent = child
            # O_NONBLOCK: a FIFO in place of a file must not hang us.
            file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError as err:
            raise BadInput(
                f"oci:{self._path}: {name}: {err.strerror}", "the layout is not complete, or not one"
            ) from err
        finally:
            os.close(parent)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise BadInput(f"oci:{self._path}: {name} is not a regular file")
        return file


def blob_name(digest: Digest) -> str:
    """The path of a blob inside a layout; a Digest holds nothing but an algorithm we know and hex digits."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def read_index(raw: bytes, where: str) -> Index:
    """index.json's value; errors name the layout."""
    try:
        return Index.parse(raw)
    except BadInput as err:
        raise type(err)(f"{where}: index.json: {err.message}", err.hint) from err


def find(index: Index, name: str | Digest, where: str, describe: Callable[[Digest], Descriptor]) -> Descriptor:
    """What `name` means in a layout's index.json. `describe` looks at a manifest that index.json does not list."""
    if isinstance(name, Digest):
        return next((item for item in index.manifests if item.digest == name), None) or describe(name)
    tags = sorted({tag for item in index.manifests if (tag := item.annotations.get(REF_NAME))})
    offered = f"it has {', '.join(tags[:20])}{' …' if len(tags) > 20 else ''}" if tags else "it has no tags"
    found = [item for item in index.manifests if not name or item.annotations.get(REF_NAME) == name]
    if not found:
        raise BadInput(f"{where}: no tag {name!r}" if name else f"{where}: holds no image", offered)
    if len({item.digest for item in found}) > 1:
        raise BadInput(f"{where}: {f'tag {name!r} is' if name else 'there are'} several images", offered)
    return found[0]
