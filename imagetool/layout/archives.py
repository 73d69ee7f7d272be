"""Archives and compressed data among what a build adds, looked through for private keys: gzip, bzip2, xz, zstd, tar, zip.

What is damaged, encrypted or past the bounds is left, and the reason is given back, so that the builder can say it.
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

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def search(file: BinaryIO, head: bytes, look: Callable[[BinaryIO], str], unread: list[str]) -> str:
    """Find the first private key in the archive `file`, which begins with `head`; "" if it has none or is not an archive.

    `look` says what private key is in one of its files. If not all of the archive is read, `unread` gets the reason.
    """
    for name, member in _members(file, head, unread):
        found = look(member)
        if found:
            return f"{found} in {printable(name, 100)}" if name else found
    return ""


def is_archive(head: bytes) -> bool:
    """Return whether a file that begins with `head` is one that search() looks into."""
    return head.startswith(_ZIP) or compression(head) in _COMPRESSED or _is_tar(head)


def _members(file: BinaryIO, head: bytes, unread: list[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Each file in it with its name, as far as it can be read; compressed data is one without a name."""
    try:
        if head.startswith(_ZIP):
            yield from _of_zip(file, unread)
        elif compression(head) in _COMPRESSED:
            yield "", _bounded(_inflated(file, head), unread)
        elif _is_tar(head):
            yield from _of_tar(file, unread)
    except Exception as err:  # each library has its own for what is damaged
        if isinstance(err, OSError) and err.errno:
            raise
        unread.append(DAMAGED)


def _inflated(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    how = compression(head)
    if how == "zstd":
        import zstandard

        reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX_BYTES).stream_reader(
            file, read_across_frames=True
        )
        while piece := reader.read(_PIECE_BYTES):
            yield piece
    elif how == "gzip":
        import gzip

        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            while piece := unpacked.read1(64 << 10):  # all there is before the damage
                yield piece
    else:
        import bz2
        import lzma

        data = b""
        while data := data or file.read(_PIECE_BYTES):
            made: object = (
                bz2.BZ2Decompressor() if how == "bzip2" else lzma.LZMADecompressor(memlimit=2 * ZSTD_WINDOW_MAX_BYTES)
            )
            member = cast(_Decompressor, made)
            while not member.eof:
                yield member.decompress(data, _PIECE_BYTES)
                data = file.read(_PIECE_BYTES) if member.needs_input else b""
                if member.needs_input and not data:
                    return
            data = member.unused_data.lstrip(b"\0")


def _bounded(pieces: Iterator[bytes], unread: list[str]) -> BinaryIO:
    """The pieces, up to the bound, as a file that can be read twice; what cannot be read ends it."""
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
    except Exception as err:  # as above: what came before the damage is looked at
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

    left = INFLATED_MAX_BYTES
    with zipfile.ZipFile(file) as archive:
        for number, member in enumerate(archive.infolist()):
            if number >= MEMBERS_MAX_COUNT or left <= 0:
                unread.append(_too_many() if left > 0 else _too_long())
                return
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                unread.append(ENCRYPTED)
                continue
            left -= member.file_size
            with archive.open(member) as opened:
                yield (
                    member.filename,
                    _bounded(iter(lambda opened=opened: opened.read(_PIECE_BYTES), b""), unread),  # type: ignore[misc]
                )


def _of_tar(file: BinaryIO, unread: list[str]) -> Iterator[tuple[str, BinaryIO]]:
    import tarfile

    left = INFLATED_MAX_BYTES
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for number, member in enumerate(archive):
            if number >= MEMBERS_MAX_COUNT or left <= 0:
                unread.append(_too_many() if left > 0 else _too_long())
                return
            opened = archive.extractfile(member) if member.isreg() else None
            if opened is not None:
                left -= member.size
                yield member.name, _bounded(iter(lambda opened=opened: opened.read(_PIECE_BYTES), b""), unread)  # type: ignore[misc]


def _is_tar(head: bytes) -> bool:
    if len(head) < 512 or not head[0]:
        return False
    import tarfile

    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True
