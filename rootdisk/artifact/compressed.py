"""Blobs that are compressed as a whole, and kept decompressed where they are used: the dm-verity tree and the vmlinux."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple, cast

from rootdisk.errors import BadInput, DigestMismatch
from rootdisk.oci.documents import Digest
from rootdisk.oci.fields import Fields

VMLINUX_MAX_BYTES = 512 << 20
BLOB_SLACK_BYTES = 1 << 20  # a zstd frame is never much longer than its content
_WINDOW_MAX_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20


class Content(NamedTuple):
    """The content of a compressed blob."""

    digest: Digest
    size: int  # bytes

    @classmethod
    def of(cls, value: Fields, size_max: int) -> Content:
        """Parse the config's value. BadInput names the key that is wrong."""
        return cls(Digest.parse(value.value.get("digest")), value.integer("size", 1, size_max))

    def to_json(self) -> dict[str, Any]:
        """Return the config's value."""
        return {"digest": str(self.digest), "size": self.size}


def decompressed(pieces: Iterable[bytes], content: Content, what: str) -> Iterator[bytes]:
    """Decompress the blob `pieces`, one zstd frame, and check that the result is `content`. Errors name it `what`.

    Raises:
        DigestMismatch: It is something else.
        BadInput: It is not a zstd frame.
    """
    import zstandard  # takes a while to load

    digest, size = hashlib.sha256(), 0
    source = cast("IO[bytes]", _Pieces(pieces))  # nothing but read() is asked of it
    reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX_BYTES).stream_reader(source)
    try:
        while piece := reader.read(_PIECE_BYTES):
            size += len(piece)
            if size > content.size:
                break
            digest.update(piece)
            yield piece
    except zstandard.ZstdError as err:
        raise BadInput(f"{what} cannot be decompressed: {err}", "the artifact is damaged") from err
    if size != content.size or digest.hexdigest() != content.digest.hex:
        raise DigestMismatch(f"{what} is not that of the config", "the artifact is damaged")


class _Pieces:
    """The bytes of an iterator, for a reader that asks for some at a time."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self._rest = iter(pieces), b""

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; none at the end."""
        if not self._rest:
            self._rest = next(self._pieces, b"")
        count = len(self._rest) if size < 0 else size
        data, self._rest = self._rest[:count], self._rest[count:]
        return data
