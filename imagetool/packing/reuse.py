"""Disks packed earlier: a chunk or blob that was compressed once is taken from there.

A packed disk is a directory with its blobs `rootfs.ext4.zst.000` and so on, the chunk index `rootfs.ext4.chunks`, the
key of each chunk in the index's order (`rootfs.ext4.keys`, 32 bytes each, zero without one), and `rootfs.ext4.parts`:
a receipt that says which compressor made it, the digests of index and keys, and of each blob its key, digest, size and
number of chunks. Equal keys mean equal raw bytes and, with the same compressor, equal frames.

A whole blob is linked without reading it: the push verifies its digest. A frame is used if its content has the sha256 of
the index; a damaged one counts as missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import zstandard

from imagetool.receipts import check_file, read_receipt, write_receipt
from rootdisk.artifact.format import Chunk, ChunkIndex
from rootdisk.artifact.zstd_frames import versions
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest

TREE = "rootfs.ext4.verity.zst"  # the dm-verity tree, if the disk has one: imagetool/packing/verity.py
BLOB, INDEX, KEYS, PARTS = "rootfs.ext4.zst", "rootfs.ext4.chunks", "rootfs.ext4.keys", "rootfs.ext4.parts"
KEY_BYTES = 32


def blob_name(number: int) -> str:
    """Return the file name of a packed disk's blob; also its title in the artifact."""
    return f"{BLOB}.{number:03}"


class PackedPart(NamedTuple):
    """A blob of a packed disk: its key or None, digest, size in bytes and number of chunks."""

    key: bytes | None
    digest: Digest
    size: int
    chunks: int


class EarlierBlob(NamedTuple):
    """An earlier blob, its chunks and their keys."""

    path: Path
    part: PackedPart
    chunks: tuple[Chunk, ...]
    keys: bytes


def write_parts(folder: Path, parts: Iterable[PackedPart], index: bytes, keys: bytes) -> None:
    """Write and sync `rootfs.ext4.parts`; `index` and `keys` are the contents of the other two files."""
    listed = [
        {
            "key": part.key.hex() if part.key else None,
            "digest": str(part.digest),
            "size": part.size,
            "chunks": part.chunks,
        }
        for part in parts
    ]
    files = {INDEX: str(Digest.of(index)), KEYS: str(Digest.of(keys))}
    write_receipt(folder / PARTS, {"compressor": versions(), "parts": listed, "files": files}, durable=True)


class Earlier:
    """Chunks and blobs of earlier disks by key; a context manager. Safe for several threads."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._frames: dict[bytes, tuple[Path, int, Chunk]] = {}  # blob, offset in it, chunk
        self._parts: dict[bytes, EarlierBlob] = {}
        self._descriptors: dict[Path, int] = {}
        for folder in folders:
            self._add(folder)

    def _add(self, folder: Path) -> None:
        try:
            described = read_receipt(folder / PARTS)
            if described["compressor"] != versions():
                return
            for name in (INDEX, KEYS):
                check_file(folder / name, described["files"][name])
            keys = (folder / KEYS).read_bytes()
            chunks = ChunkIndex.parse((folder / INDEX).read_bytes()).chunks
            parts = [
                PackedPart(
                    bytes.fromhex(item["key"]) if item["key"] else None,
                    Digest.parse(item["digest"]),
                    int(item["size"]),
                    int(item["chunks"]),
                )
                for item in described["parts"]
            ]
        except (OSError, RootdiskError, ValueError, KeyError, TypeError):
            return  # being made, pruned or damaged: its chunks are not reused
        if len(keys) != KEY_BYTES * len(chunks) or sum(part.chunks for part in parts) != len(chunks):
            return
        first, none = 0, bytes(KEY_BYTES)
        for number, part in enumerate(parts):
            path = folder / blob_name(number)
            part_chunks = chunks[first : first + part.chunks]
            part_keys = keys[first * KEY_BYTES : (first + part.chunks) * KEY_BYTES]
            if part.key is not None:
                self._parts[part.key] = EarlierBlob(path, part, part_chunks, part_keys)
            for place, chunk in enumerate(part_chunks):
                key = part_keys[place * KEY_BYTES : (place + 1) * KEY_BYTES]
                if key != none:
                    self._frames[key] = (path, chunk.blob_offset - part_chunks[0].blob_offset, chunk)
            first += part.chunks

    def link(self, key: bytes | None, length: int, path: Path) -> EarlierBlob | None:
        """Link the blob with `key`, of `length` bytes of disk, to `path` and return it; None if there is none."""
        blob = self._parts.get(key) if key is not None else None
        if blob is None or sum(chunk.length for chunk in blob.chunks) != length:
            return None
        try:
            os.link(blob.path, path, follow_symlinks=False)
            if path.stat().st_size == blob.part.size:
                return blob
            path.unlink()
        except OSError:
            pass  # pruned meanwhile, or a file system without links: its frames may still be there
        return None

    def frame(self, key: bytes, length: int) -> tuple[bytes, bytes] | None:
        """Return the frame of the chunk with `key` and `length` raw bytes, and the sha256 of its content; None if there is none.

        The frame is verified.
        """
        location = self._frames.get(key)
        if location is None or location[2].length != length:
            return None
        path, offset, chunk = location
        try:
            frame = os.pread(self._descriptor(path), chunk.blob_length, offset)
            raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=length)
        except (OSError, zstandard.ZstdError):
            return None
        if len(raw) != length or hashlib.sha256(raw).digest() != chunk.sha256:
            return None
        return frame, chunk.sha256

    def _descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if self._descriptors.setdefault(path, descriptor) != descriptor:  # another thread was quicker
                os.close(descriptor)
        return self._descriptors[path]

    def __enter__(self) -> Earlier:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._frames.clear()
        self._parts.clear()
