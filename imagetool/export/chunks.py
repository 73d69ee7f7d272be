"""The disk of an artifact from its first byte to its last: every chunk that has data, verified, in one pass over the blobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import zstandard

from rootdisk.artifact.format import Chunk
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.artifact.zstd_frames import unpack
from rootdisk.errors import DigestMismatch, RegistryError
from rootdisk.oci.repository import Joined


def data_chunks(artifact: PublishedArtifact) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of each chunk that is not all zeros, in disk order.

    Raises:
        DigestMismatch: A chunk is not that of the index, at every place that was asked.
    """
    joined, chunks = artifact.joined(), artifact.index.chunks
    decompressor = zstandard.ZstdDecompressor()
    done = 0
    while done < len(chunks):
        for chunk, frame in _frames(joined, chunks[done:]):
            if not chunk.zero:
                try:
                    raw = unpack(chunk, frame, decompressor)
                except DigestMismatch:
                    if not joined.blame(chunk.blob_offset, chunk.blob_end):
                        raise
                    break  # from this chunk on, at another place
                yield chunk.offset, raw
            done += 1


def _frames(joined: Joined, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, bytes]]:
    """Yield each of `chunks`, which follow one another, with its frame."""
    pieces = joined.read(chunks[0].blob_offset, chunks[-1].blob_end)
    buffer = bytearray()
    for chunk in chunks:
        while len(buffer) < chunk.blob_length:
            piece = next(pieces, b"")
            if not piece:
                raise RegistryError("the disk's blobs end too early", temporary=True)
            buffer += piece
        yield chunk, bytes(buffer[: chunk.blob_length])
        del buffer[: chunk.blob_length]
