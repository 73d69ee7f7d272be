"""What a fetch has brought, and what it has asked for again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from rootdisk.artifact.format import Chunk, ChunkIndex
from rootdisk.oci.documents import Descriptor
from tests.support.artifacts import Sample
from tests.support.faults import FaultProxy


def verified(store: Path, sample: Sample) -> list[Chunk]:
    """The chunks that the partial file has, looked at without any of our own code."""
    found = list((store / "disks").glob("*.partial"))
    if not found:
        return []
    with found[0].open("rb") as file:
        return [
            chunk
            for chunk in sample.index.chunks
            if not chunk.zero
            and hashlib.sha256(os.pread(file.fileno(), chunk.length, chunk.offset)).digest() == chunk.sha256
        ]


def refetched(proxy: FaultProxy, since: int, sample: Sample, chunks: list[Chunk]) -> int:
    """The longest run of `chunks` that an answer held, bytes."""
    longest = 0
    for path, start, count in proxy.served[since:]:
        run = 0
        for chunk in sample.index.chunks:
            if path.endswith(sample.path) and start <= chunk.blob_offset and chunk.blob_end <= start + count:
                run = run + chunk.blob_length if chunk in chunks or chunk.zero else 0
                longest = max(longest, run)
    return longest


def times_served(proxy: FaultProxy, sample: Sample) -> list[int]:
    """How often each chunk with data was in an answer, completely."""
    answers = [(start, start + count) for path, start, count in proxy.served if path.endswith(sample.path)]
    return [
        sum(start <= chunk.blob_offset and chunk.blob_end <= end for start, end in answers)
        for chunk in sample.index.chunks
        if not chunk.zero
    ]


def bytes_served(proxy: FaultProxy, index: ChunkIndex, blobs: Sequence[Descriptor]) -> list[int]:
    """How many bytes of each chunk with data were in answers; `blobs` together are the disk's."""
    starts = dict(
        zip((str(blob.digest) for blob in blobs), accumulate((blob.size for blob in blobs), initial=0), strict=False)
    )
    spans = [
        (starts[digest] + start, count)
        for path, start, count in proxy.served
        if (digest := path.rpartition("/")[2]) in starts
    ]
    return [
        sum(max(0, min(start + count, chunk.blob_end) - max(start, chunk.blob_offset)) for start, count in spans)
        for chunk in index.chunks
        if not chunk.zero
    ]
