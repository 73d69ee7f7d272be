"""The dm-verity tree of a packed disk, compressed: docs/artifact-1.md.

A disk is mostly holes, so its hashes are mostly the same. Levels are runs of equal hashes here, and of equal blocks: time
and memory are those of the data.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

from imagetool.packing.reuse import blob_name
from rootdisk.artifact.compressed import Content
from rootdisk.artifact.format import ChunkIndex
from rootdisk.artifact.verity import BLOCK_BYTES, HASHES, SALT, Verity, superblock, tree_size
from rootdisk.artifact.zstd_frames import LEVEL, unpack
from rootdisk.oci.documents import Digest

_WRITE_BLOCKS = 256

Run = tuple[bytes, int]  # a hash or a block, and how many times it follows


class MadeTree(NamedTuple):
    """A tree: its values for the config, and its compressed bytes."""

    verity: Verity
    blob: bytes


def make_tree(folder: Path, index: ChunkIndex, blobs: int) -> MadeTree:
    """Make the tree of the packed disk in `folder`, which has so many blobs. The disk is a whole number of 4 KiB blocks.

    Raises:
        DigestMismatch: a blob is damaged.
    """
    salted = hashlib.sha256(SALT)
    levels = [list(_blocks(_disk_hashes(folder, index, blobs, salted)))]
    while _count(levels[-1]) > 1:
        levels.append(list(_blocks(_hashes(levels[-1], salted))))
    [(root, _)] = _hashes(levels[-1], salted)
    data_blocks = index.disk_size // BLOCK_BYTES
    size = tree_size(data_blocks)
    digest = hashlib.sha256()
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)
    frame = compressor.compressobj(size=size)
    out = []
    for piece in _pieces(itertools.chain([(superblock(data_blocks), 1)], *reversed(levels))):
        digest.update(piece)
        out.append(frame.compress(piece))
    out.append(frame.flush())
    return MadeTree(Verity(root.hex(), data_blocks, Content(Digest("sha256", digest.hexdigest()), size)), b"".join(out))


def _disk_hashes(folder: Path, index: ChunkIndex, blobs: int, salted: hashlib._Hash) -> Iterator[Run]:
    """Yield the hash of each block of the disk, in order."""
    zero = _hash(bytes(BLOCK_BYTES), salted)
    decompressor = zstandard.ZstdDecompressor()
    with _Frames([folder / blob_name(number) for number in range(blobs)]) as frames:
        for chunk in index.chunks:  # each is a whole number of blocks
            frame = frames.read(chunk.blob_length)
            if chunk.zero:
                yield zero, chunk.length // BLOCK_BYTES
                continue
            raw = memoryview(unpack(chunk, frame, decompressor))
            for at in range(0, chunk.length, BLOCK_BYTES):
                yield _hash(raw[at : at + BLOCK_BYTES], salted), 1


class _Frames:
    """The blobs of a packed disk as one file, read from the start."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._number = 0

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def read(self, length: int) -> bytes:
        """Return the next `length` bytes: a frame, which never lies in two blobs."""
        while self._number < len(self._files):
            if data := self._files[self._number].read(length):
                return data
            self._number += 1
        return b""


def _hash(block: bytes | memoryview, salted: hashlib._Hash) -> bytes:
    digest = salted.copy()
    digest.update(block)
    return digest.digest()


def _hashes(blocks: Iterable[Run], salted: hashlib._Hash) -> Iterator[Run]:
    """Yield the hash of each block."""
    for block, count in blocks:
        yield _hash(block, salted), count


def _blocks(hashes: Iterable[Run]) -> Iterator[Run]:
    """Yield the hashes in blocks; the last one is filled with zeros."""
    block = b""
    for digest, number in hashes:
        count = number
        if block or count < HASHES:
            taken = min(count, HASHES - len(block) // len(digest))
            block += digest * taken
            count -= taken
            if len(block) == BLOCK_BYTES:
                yield block, 1
                block = b""
        if count >= HASHES:
            yield digest * HASHES, count // HASHES
            count %= HASHES
        block += digest * count
    if block:
        yield block + bytes(BLOCK_BYTES - len(block)), 1


def _count(runs: Iterable[Run]) -> int:
    return sum(count for _, count in runs)


def _pieces(runs: Iterable[Run]) -> Iterator[bytes]:
    """Yield the blocks of `runs` in pieces of bounded size."""
    for block, count in runs:
        for done in range(0, count, _WRITE_BLOCKS):
            yield block * min(_WRITE_BLOCKS, count - done)
