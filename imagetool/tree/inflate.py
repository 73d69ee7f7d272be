"""Layer blobs -> tars: one pass that verifies the blob, inflates it and verifies the tar.

    TarPieces(blob, crew, expected=descriptor, diff_id=…, name=…)     its bytes, for an iterator
    inflate(blob, out_fd, crew, expected=…, diff_id=…, name=…)        the same, written to a file

Reading, hashing the blob and inflating are work for the crew, beside hashing and using the tar; all of them release the GIL.
Nothing of an image is believed before its size: the blob is bounded by its descriptor, the tar by `max_bytes`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from imagetool.tree.decompression import Damaged, UnknownCompression, decompressed
from rootdisk.errors import BadInput, DigestMismatch, Unsupported
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.system.crew import Crew

TAR_MAX_BYTES = 64 << 30
LAYER_FORMATS = "layers are gzip, zstd, bzip2, xz or plain tars"
_AHEAD = 4  # pieces that are made while as many are used


class Inflated(NamedTuple):
    """The tar that was written: its digest, which is the layer's diff ID, and its length in bytes."""

    diff_id: Digest
    size: int


def inflate(
    blob: Iterable[bytes],
    out_fd: int,
    crew: Crew,
    *,
    expected: Descriptor,
    diff_id: Digest | None,
    name: str,
    max_bytes: int = TAR_MAX_BYTES,
) -> Inflated:
    """Write the tar of the layer in `blob` to `out_fd`, from its present position on. Arguments and errors: see `TarPieces`."""
    tar = TarPieces(blob, crew, expected=expected, diff_id=diff_id, name=name, max_bytes=max_bytes)
    with contextlib.closing(iter(tar)) as pieces:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(out_fd, view) :]
    return tar.inflated


class TarPieces:
    """The tar of the layer in `blob`, in pieces; `name` is for messages. At the end of the iterator all is verified.

    Iterating raises DigestMismatch if the blob is not the one described, or the tar is not the one of `diff_id`; BadInput
    if the compression is damaged or the tar longer than `max_bytes`. What came before an error is to be thrown away.
    """

    def __init__(
        self,
        blob: Iterable[bytes],
        crew: Crew,
        *,
        expected: Descriptor,
        diff_id: Digest | None,
        name: str,
        max_bytes: int = TAR_MAX_BYTES,
    ) -> None:
        self._crew, self._verified = crew, _Verified(blob, expected, name)
        self._diff_id, self._name, self._max_bytes = diff_id, name, max_bytes
        self._inflated: Inflated | None = None
        self._size = 0

    @property
    def growth(self) -> float:
        """The bytes of the tar for each byte of the blob, so far."""
        return self._size / max(self._verified.count, 1)

    @property
    def inflated(self) -> Inflated:
        """The digest and size of the whole tar. Ask at the end of the iterator."""
        assert self._inflated is not None
        return self._inflated

    def __iter__(self) -> Generator[bytes, None, None]:
        name, diff_id = self._name, self._diff_id
        hash_name = diff_id.algorithm if diff_id else "sha256"
        hashed = hashlib.new(hash_name)
        try:
            with contextlib.closing(_ahead(decompressed(iter(self._verified)), self._crew)) as pieces:
                for piece in pieces:
                    self._size += len(piece)
                    if self._size > self._max_bytes:
                        raise BadInput(
                            f"layer {name}: its tar is longer than {self._max_bytes} bytes",
                            "is the image made to do harm?",
                        )
                    hashed.update(piece)
                    yield piece
        except (Damaged, UnknownCompression, BadInput) as err:
            for _ in self._verified:  # a wrong digest is the better answer: fetching again may help
                pass
            if isinstance(err, BadInput):
                raise
            if isinstance(err, UnknownCompression):
                raise Unsupported(f"layer {name}: compressed with {err}", LAYER_FORMATS) from err
            raise BadInput(f"layer {name}: {err}", "the image was made wrongly; push it again") from err
        found = Digest(hash_name, hashed.hexdigest())
        if diff_id is not None and found != diff_id:
            raise DigestMismatch(
                f"layer {name}: its tar is {found}, the image's config says {diff_id}", "push it again"
            )
        self._inflated = Inflated(found, self._size)


def _ahead(items: Iterator[bytes], crew: Crew) -> Generator[bytes, None, None]:
    """Yield `items`. The crew makes the next few while the last few are used."""

    def few() -> list[bytes]:
        """Make the next few."""
        return list(islice(items, _AHEAD))

    job = crew.submit(few)
    try:
        while made := crew.result(job):
            job = crew.submit(few)
            yield from made
    finally:
        job.cancel()


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
