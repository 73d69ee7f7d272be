"""Search archives and compressed data that a build adds for private keys: gzip, bzip2, xz, zstd, tar, zip.

What is damaged, encrypted or above a limit is skipped, and the reason is returned, so that the build can print it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

from rootdisk.compression import ZSTD_WINDOW_MAX_BYTES, compression
from rootdisk.text import printable

INFLATED_MAX_BYTES = 256 << 20  # of one file that a build adds, at each depth
MEMBERS_MAX_COUNT = 50_000
DAMAGED = "not all of it can be read"
ENCRYPTED = "files in it are encrypted"
_COMPRESSED = ("gzip", "bzip2", "xz", "lzma", "zstd")
_PIECE_BYTES = 1 << 20
_ZIP = b"PK\x03\x04"


class _Decompressor(Protocol):
    """A decompressor with the interface of those of bz2 and lzma."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Return at most `max_length` more bytes of the content, after reading `data`."""


def search(file: BinaryIO, head: bytes, look: Callable[[BinaryIO], str], unread: list[str]) -> str:
    """Find the first private key in the archive `file`, which begins with `head`; "" if it has none or is not an archive.

    `look` returns the private key in one of its files, in words. If not all of the archive is read, `unread` gets the reason.
    """
    for name, member in _members(file, head, unread):
        key = look(member)
        if key:
            return f"{key} in {printable(name, 100)}" if name else key
    return ""


def is_archive(head: bytes) -> bool:
    """Return whether search() looks into a file that begins with `head`."""
    return head.startswith(_ZIP) or compression(head) in _COMPRESSED or _is_tar(head)


def _members(file: BinaryIO, head: bytes, unread: list[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the name and content of each file, as far as it can be read. Compressed data is one file without a name."""
    try:
        if head.startswith(_ZIP):
            yield from _of_zip(file, unread)
        elif compression(head) in _COMPRESSED:
            yield "", _bounded(_inflated(file, head), unread)
        elif _is_tar(head):
            yield from _of_tar(file, unread)
    except Exception as err:  # each library has its own errors for damaged data
        if isinstance(err, OSError) and err.errno:
            raise
        unread.append(DAMAGED)


def _inflated(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    kind = compression(head)
    if kind == "zstd":
        import zstandard

        reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX_BYTES).stream_reader(
            file, read_across_frames=True
        )
        while piece := reader.read(_PIECE_BYTES):
            yield piece
    elif kind == "gzip":
        import gzip

        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            while piece := unpacked.read1(64 << 10):  # everything before the damage
                yield piece
    else:
        import bz2
        import lzma

        data = b""
        while data := data or file.read(_PIECE_BYTES):
            decompressor: object = (
                bz2.BZ2Decompressor() if kind == "bzip2" else lzma.LZMADecompressor(memlimit=2 * ZSTD_WINDOW_MAX_BYTES)
            )
            stream = cast(_Decompressor, decompressor)
            while not stream.eof:
                yield stream.decompress(data, _PIECE_BYTES)
                data = file.read(_PIECE_BYTES) if stream.needs_input else b""
                if stream.needs_input and not data:
                    return
            data = stream.unused_data.lstrip(b"\0")


def _bounded(pieces: Iterator[bytes], unread: list[str]) -> BinaryIO:
    """Return the pieces, up to the limit, as a file that can be read twice. It ends where data cannot be read."""
    import tempfile

    out = tempfile.SpooledTemporaryFile(max_size=8 << 20)  # noqa: SIM115
    count = 0
    try:
        for piece in pieces:
            out.write(piece[: INFLATED_MAX_BYTES - count])
            count += len(piece)
            if count > INFLATED_MAX_BYTES:
                unread.append(_too_long())
                break
    except Exception as err:  # as above: the data before the damage is searched
        if isinstance(err, OSError) and err.errno:
            raise
        unread.append(DAMAGED)
    out.seek(0)
    return cast(BinaryIO, out)


def _too_long() -> str:
    return f"it holds more than {INFLATED_MAX_BYTES >> 20} MiB"


def _too_many() -> str:
    return f"it holds more than {MEMBERS_MAX_COUNT:,} files"


def _of_zip(file: BinaryIO, unread: list[str]) -> Iterator[tuple[str, BinaryIO]]:
    import zipfile

    left_bytes = INFLATED_MAX_BYTES
    with zipfile.ZipFile(file) as archive:
        for number, member in enumerate(archive.infolist()):
            if number >= MEMBERS_MAX_COUNT or left_bytes <= 0:
                unread.append(_too_many() if left_bytes > 0 else _too_long())
                return
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                unread.append(ENCRYPTED)
                continue
            left_bytes -= member.file_size
            with archive.open(member) as opened:
                yield (
                    member.filename,
                    _bounded(iter(lambda opened=opened: opened.read(_PIECE_BYTES), b""), unread),  # type: ignore[misc]
                )


def _of_tar(file: BinaryIO, unread: list[str]) -> Iterator[tuple[str, BinaryIO]]:
    import tarfile

    left_bytes = INFLATED_MAX_BYTES
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for number, member in enumerate(archive):
            if number >= MEMBERS_MAX_COUNT or left_bytes <= 0:
                unread.append(_too_many() if left_bytes > 0 else _too_long())
                return
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                left_bytes -= member.size
                yield member.name, _bounded(iter(lambda content=content: content.read(_PIECE_BYTES), b""), unread)  # type: ignore[misc]


def _is_tar(head: bytes) -> bool:
    if len(head) < 512 or not head[0]:
        return False
    import tarfile

    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True
