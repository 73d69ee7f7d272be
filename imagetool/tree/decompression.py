"""Compressed layers and archives as pieces of plain bytes, with bounded memory whatever the data says.

The compression is told by the first bytes, as container runtimes do, since media types lie. Docker's four are known: gzip,
bzip2, xz and zstd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import zstandard
from isal import igzip_lib

from rootdisk.compression import BZIP2, GZIP, HEAD_BYTES, XZ, ZSTD_WINDOW_MAX_BYTES, compression

PIECE_BYTES = 512 << 10  # larger ones leave larger holes in the memory of threads
XZ_MEMORY_MAX_BYTES = 128 << 20  # xz -9 needs 65 MiB
# Four bytes can stand for a block of 128 KiB, so this much input gives at most 32 MiB at once.
ZSTD_FEED_BYTES = 1 << 10


class Damaged(Exception):
    """The compressed data is wrong."""


class UnknownCompression(Exception):
    """The data is compressed in a way that container runtimes do not know either; its name."""


class _Format(NamedTuple):
    """A format whose decompressors have the interface of bz2 and lzma."""

    new: Callable[[], Any]
    error: type[Exception]
    magic: bytes
    padding: bool = False  # zeros may stand between two streams too


def decompressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content of `pieces` in pieces of about PIECE_BYTES; unchanged if it is not compressed.

    Raises:
        Damaged: It cannot be decompressed to its end, or other data follows.
        UnknownCompression: It is compressed with something else.
    """
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= HEAD_BYTES:
            break
    how = compression(head)
    if how in _FORMATS:
        yield from _streams(head, pieces, how, _FORMATS[how]())
    elif how == "zstd":
        yield from _unzstd(head, pieces)
    elif how:
        raise UnknownCompression(how)
    else:
        if head:
            yield head
        yield from pieces


def _gzip() -> _Format:
    """RFC 1952."""
    return _Format(
        lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP),
        igzip_lib.error,  # type: ignore[arg-type]  # its stub calls the class an instance
        GZIP,
    )


def _bzip2() -> _Format:
    import bz2  # both are seldom needed, and not in every Python

    return _Format(bz2.BZ2Decompressor, OSError, BZIP2)


def _xz() -> _Format:
    """The .xz file format, 1.2.1."""
    import lzma

    return _Format(
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX_BYTES), lzma.LZMAError, XZ, padding=True
    )


_FORMATS: dict[str, Callable[[], _Format]] = {"gzip": _gzip, "bzip2": _bzip2, "xz": _xz}


def _streams(piece: bytes, pieces: Iterator[bytes], how: str, form: _Format) -> Iterator[bytes]:
    """Any number of streams, and zeros after the last: padding up to a tape's block, which gzip(1) ignores too."""
    stream = form.new()
    while True:
        try:
            out = stream.decompress(piece, PIECE_BYTES)
        except form.error as err:
            raise Damaged(f"the {how} stream is damaged ({err})") from err
        if out:
            yield out
        piece = b""
        if stream.eof:
            is_padded, piece = _behind(stream.unused_data, pieces)
            if not piece:
                return
            if not piece.startswith(form.magic) or (is_padded and not form.padding):
                raise Damaged(f"something that is not {how} follows the {how} stream")
            stream = form.new()
        elif stream.needs_input:
            more = next(pieces, None)
            if more is None:
                raise Damaged(f"the {how} stream ends too early")
            piece = more


def _behind(rest: bytes, pieces: Iterator[bytes]) -> tuple[bool, bytes]:
    """Skip zeros. Return whether there were any, and what follows, with a magic number's bytes if there are as many."""
    is_padded = False
    while True:
        stripped = rest.lstrip(b"\0")
        is_padded = is_padded or len(stripped) < len(rest)
        more = next(pieces, None) if len(stripped) < HEAD_BYTES else None
        if more is None:
            return is_padded, stripped
        rest = stripped + more


def _unzstd(piece: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """RFC 8878, any number of frames, skippable ones too (zstd:chunked); read in small bits to bound the output."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX_BYTES)
    frame = None
    gathered: list[bytes] = []
    size = 0
    more: bytes | None = piece
    while more is not None:
        view = memoryview(more)
        while view:
            bit, view = view[:ZSTD_FEED_BYTES], view[ZSTD_FEED_BYTES:]
            while bit:
                if frame is None:
                    frame = decompressor.decompressobj(write_size=PIECE_BYTES >> 3)
                try:
                    out = frame.decompress(bit)
                except zstandard.ZstdError as err:
                    raise Damaged(f"the zstd stream is damaged ({err})") from err
                bit = memoryview(b"")
                if frame.eof:
                    bit = memoryview(frame.unused_data)
                    frame = None
                if out:
                    gathered.append(out)
                    size += len(out)
            if size >= PIECE_BYTES:
                whole = b"".join(gathered)
                gathered, size = [], 0
                # What waits for the second thread is bounded by its number, so each must be small.
                for start in range(0, len(whole), PIECE_BYTES):
                    yield whole[start : start + PIECE_BYTES]
        more = next(pieces, None)
    if frame is not None:
        raise Damaged("the zstd stream ends too early")
    if gathered:
        yield b"".join(gathered)
