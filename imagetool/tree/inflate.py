"""Layer blobs -> tars: one pass that verifies the blob, inflates it and verifies the tar.

    inflate(blob, out_fd, expected=descriptor, diff_id=…, name=…) -> Inflated

Hashing and writing the tar runs in a second thread beside reading, hashing the blob and inflating; all of them release the GIL.
Nothing of an image is believed before its size: the blob is bounded by its descriptor, the tar by `max_bytes`.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imagetool.tree.decompression import PIECE_BYTES, Damaged, UnknownCompression, decompressed
from rootdisk.errors import BadInput, DigestMismatch, Unsupported
from rootdisk.oci.documents import Descriptor, Digest

TAR_MAX_BYTES = 64 << 30
LAYER_FORMATS = "layers are gzip, zstd, bzip2, xz or plain tars"
_AHEAD = 4  # pieces that wait for the second thread


class Inflated(NamedTuple):
    """The tar that was written: its digest, which is the layer's diff ID, and its length in bytes."""

    diff_id: Digest
    size: int


def inflate(
    blob: Path | BinaryIO | Iterable[bytes],
    out_fd: int,
    *,
    expected: Descriptor,
    diff_id: Digest | None,
    name: str,
    max_bytes: int = TAR_MAX_BYTES,
) -> Inflated:
    """Write the tar of the layer in `blob` to `out_fd`, from its present position on; `name` is for messages.

    DigestMismatch: the blob is not the one described, or the tar is not the one of `diff_id`. BadInput: the compression
    is damaged or the tar longer than `max_bytes`. What was written is to be thrown away on any error.
    """
    if isinstance(blob, Path):
        with blob.open("rb", buffering=0) as file:
            return inflate(file, out_fd, expected=expected, diff_id=diff_id, name=name, max_bytes=max_bytes)
    pieces = blob if isinstance(blob, Iterable) and not hasattr(blob, "read") else _read(blob)  # type: ignore[arg-type]
    verified = _Verified(pieces, expected, name)
    tar = _Tar(out_fd, diff_id.algorithm if diff_id else "sha256", name, max_bytes)
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for piece in decompressed(iter(verified)):
                waiting.append(pool.submit(tar.take, piece))
                if len(waiting) > _AHEAD:
                    waiting.popleft().result()
        except (Damaged, UnknownCompression, BadInput) as err:
            for _ in verified:  # a wrong digest is the better answer: fetching again may help
                pass
            if isinstance(err, BadInput):
                raise
            if isinstance(err, UnknownCompression):
                raise Unsupported(f"layer {name}: compressed with {err}", LAYER_FORMATS) from err
            raise BadInput(f"layer {name}: {err}", "the image was made wrongly; push it again") from err
        for future in waiting:
            future.result()
    found = Digest(tar.hash_name, tar.hash.hexdigest())
    if diff_id is not None and found != diff_id:
        raise DigestMismatch(f"layer {name}: its tar is {found}, the image's config says {diff_id}", "push it again")
    return Inflated(found, tar.size)


class _Verified:
    """The blob's bytes, counted and hashed; at their end they are those of the descriptor, or it raises."""

    def __init__(self, pieces: Iterable[bytes], expected: Descriptor, name: str) -> None:
        self.pieces = iter(pieces)
        self.expected = expected
        self.name = name
        self.count = 0
        self.hash = hashlib.new(expected.digest.algorithm)

    def __iter__(self) -> Iterator[bytes]:
        want = self.expected
        for piece in self.pieces:
            self.count += len(piece)
            if self.count > want.size:
                raise DigestMismatch(f"layer {self.name}: more than its {want.size} bytes came", "fetch it again")
            self.hash.update(piece)
            yield piece
        if self.count != want.size:
            raise DigestMismatch(f"layer {self.name}: {self.count} of {want.size} bytes came", "fetch it again")
        if self.hash.hexdigest() != want.digest.hex:
            got = Digest(want.digest.algorithm, self.hash.hexdigest())
            raise DigestMismatch(f"layer {self.name}: got {got}, expected {want.digest}", "fetch it again")


class _Tar:
    """The uncompressed side: bounded, hashed and written; used by one thread."""

    def __init__(self, fd: int, hash_name: str, name: str, max_bytes: int) -> None:
        self.fd = fd
        self.hash_name = hash_name
        self.hash = hashlib.new(hash_name)
        self.name = name
        self.size = 0
        self.max_bytes = max_bytes

    def take(self, piece: bytes) -> None:
        """Count, hash and write a piece. BadInput if the tar gets too long."""
        self.size += len(piece)
        if self.size > self.max_bytes:
            raise BadInput(
                f"layer {self.name}: its tar is longer than {self.max_bytes} bytes", "is the image made to do harm?"
            )
        self.hash.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self.fd, view) :]


def _read(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece
