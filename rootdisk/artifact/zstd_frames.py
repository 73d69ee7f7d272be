"""zstd frames: one chunk, one independent frame; and the standard seek table that makes the file seekable.

RFC 8878 for frames; facebook/zstd contrib/seekable_format (version 0.1) for the seek table. Content size is written,
the checksum is not: the chunk index has a sha256 of each chunk.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import zstandard

from rootdisk.artifact.format import Chunk
from rootdisk.compression import ZSTD
from rootdisk.errors import DigestMismatch

LEVEL = 3

_BLOCK_BYTES = 128 << 10  # Block_Maximum_Size
_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1


def versions() -> dict[str, str]:
    """Return the versions of the library and the level: with the chunk they decide a frame's bytes."""
    return {
        "zstandard": zstandard.__version__,
        "libzstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "level": str(LEVEL),
    }


def compressor() -> zstandard.ZstdCompressor:
    """Return a compressor for use by one thread."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)


def zero_frame(length: int) -> bytes:
    """Return a frame of `length` zero bytes (1 to 2^32-1), made of run-length blocks: 4 bytes for each 128 KiB.

    Written by hand, because compressing a gigabyte of zeros needs the gigabyte.
    """
    # Frame header: 4-byte content size, a window of 128 KiB (exponent 7, mantissa 0).
    parts = [ZSTD, struct.pack("<BBI", 0b10_0_0_0_0_00, 7 << 3, length)]
    full, rest = divmod(length, _BLOCK_BYTES)
    sizes = [_BLOCK_BYTES] * full + [rest] * bool(rest)
    block = struct.pack("<I", _BLOCK_BYTES << 3 | 1 << 1)[:3] + b"\0"
    parts.append(block * (len(sizes) - 1))
    parts.append(struct.pack("<I", sizes[-1] << 3 | 1 << 1 | 1)[:3] + b"\0")
    return b"".join(parts)


def seek_table(frames: Iterable[tuple[int, int]]) -> bytes:
    """Return the skippable frame at the file's end, from each frame's compressed and raw length in bytes."""
    entries = [struct.pack("<II", compressed, raw) for compressed, raw in frames]
    body = b"".join(entries) + struct.pack("<IBI", len(entries), 0, _SEEKABLE)
    return struct.pack("<II", _SKIPPABLE, len(body)) + body


def unpack(chunk: Chunk, frame: bytes, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """Return the chunk's raw bytes. DigestMismatch: they are not those of the index, or the frame is damaged."""
    try:
        # A frame that says it is larger would get the memory before it is looked at.
        fits = zstandard.frame_content_size(frame) in (chunk.length, -1)
        raw = decompressor.decompress(frame, max_output_size=chunk.length, allow_extra_data=False) if fits else b""
    except zstandard.ZstdError as err:
        raise DigestMismatch(f"chunk at {chunk.offset}: damaged frame", "fetch again, or ask who published it") from err
    if len(raw) != chunk.length or hashlib.sha256(raw).digest() != chunk.sha256:
        raise DigestMismatch(f"chunk at {chunk.offset}: not the bytes of the index", "fetch again")
    return raw
