"""Chunks of earlier disks: what has been compressed once is copied.

A disk in the cache is `rootfs.ext4.zst`, `rootfs.ext4.chunks` and `rootfs.ext4.keys` (32 bytes a chunk, in the
index's order). Equal keys mean equal raw bytes and, with the same writer and zstd versions, equal frames. Nothing is
believed: a frame is decompressed and its sha256 compared before it is used; a damaged one counts as not there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from runner.artifact import Chunk, ChunkIndex
from runner.errors import RootdiskError

BLOB, INDEX, KEYS = "rootfs.ext4.zst", "rootfs.ext4.chunks", "rootfs.ext4.keys"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Found:
    raw: bytes
    sha256: bytes
    frame: bytes


class Earlier:
    """The chunks of earlier disks by key; a context manager that holds their files open. Safe from several threads."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._places: dict[bytes, tuple[int, Chunk]] = {}
        self._descriptors: list[int] = []
        for folder in folders:
            self._add(folder)

    def _add(self, folder: Path) -> None:
        try:
            keys = (folder / KEYS).read_bytes()
            index = ChunkIndex.parse((folder / INDEX).read_bytes())
            descriptor = os.open(folder / BLOB, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, RootdiskError):
            return  # being made, or pruned: its chunks are only not reused
        self._descriptors.append(descriptor)
        if len(keys) != KEY_BYTES * len(index.chunks):
            return
        none = bytes(KEY_BYTES)
        for number, chunk in enumerate(index.chunks):
            key = keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]
            if key != none:
                self._places[key] = (descriptor, chunk)

    def find(self, key: bytes, length: int) -> Found | None:
        """The chunk with `key` and raw `length`, verified, or None."""
        place = self._places.get(key)
        if place is None or place[1].length != length:
            return None
        descriptor, chunk = place
        frame = os.pread(descriptor, chunk.blob_length, chunk.blob_offset)
        try:
            raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=length)
        except zstandard.ZstdError:
            return None
        if len(raw) != length or hashlib.sha256(raw).digest() != chunk.sha256:
            return None
        return Found(raw, chunk.sha256, frame)

    def __enter__(self) -> Earlier:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._places.clear()
