"""Archives and compressed data among what a build adds, looked through for private keys: gzip, bzip2, xz, zstd, tar, zip.

As far as they go: what is damaged, encrypted or past the bounds is left, and docs/reference/secrets.md says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

from runner.text import printable

INFLATED_MAX_BYTES = 256 << 20  # of one file that a build adds, at each depth
MEMBERS_MAX_COUNT = 50_000
WINDOW_MAX_BYTES = 128 << 20
_PIECE_BYTES = 1 << 20


class _Decompressor(Protocol):
    """As those of bz2 and lzma."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def search(file: BinaryIO, head: bytes, look: Callable[[BinaryIO], str]) -> str:
    """Find the first private key in the archive `file`, which begins with `head`; "" if it has none or is no archive.

    `look` says what private key is in one of its files.
    """
    for name, member in _members(file, head):
        found = look(member)
        if found:
            return f"{found} in {printable(name, 100)}" if name else found
    return ""


def _members(file: BinaryIO, head: bytes) -> Iterator[tuple[str, BinaryIO]]:
    """Each file in it with its name, as far as it can be read; compressed data is one without a name."""
    try:
        if head.startswith(b"PK\x03\x04"):
            yield from _of_zip(file)
        elif head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
            yield "", _bounded(_inflated(file, head))
        elif _is_tar(head):
            yield from _of_tar(file)
    except Exception as err:  # each library has its own for what is damaged
        if isinstance(err, OSError) and err.errno:
            raise


def _inflated(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    if head.startswith(b"\x28\xb5"):
        import zstandard

        reader = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX_BYTES).stream_reader(
            file, read_across_frames=True
        )
        while piece := reader.read(_PIECE_BYTES):
            yield piece
    elif head.startswith(b"\x1f\x8b"):
        import gzip

        with gzip.GzipFile(fileobj=file) as unpacked:
            while piece := unpacked.read1(64 << 10):  # all there is before the damage
                yield piece
    else:
        import bz2
        import lzma

        data = b""
        while data := data or file.read(_PIECE_BYTES):
            made: object = (
                bz2.BZ2Decompressor()
                if head.startswith(b"BZ")
                else lzma.LZMADecompressor(memlimit=2 * WINDOW_MAX_BYTES)
            )
            member = cast(_Decompressor, made)
            while not member.eof:
                yield member.decompress(data, _PIECE_BYTES)
                data = file.read(_PIECE_BYTES) if member.needs_input else b""
                if member.needs_input and not data:
                    return
            data = member.unused_data.lstrip(b"\0")


def _bounded(pieces: Iterator[bytes]) -> BinaryIO:
    """The pieces, up to the bound, as a file that can be read twice; what cannot be read ends it."""
    import tempfile

    out = tempfile.SpooledTemporaryFile(max_size=8 << 20)  # noqa: SIM115
    count = 0
    try:
        for piece in pieces:
            out.write(piece[: INFLATED_MAX_BYTES - count])
            count += len(piece)
            if count >= INFLATED_MAX_BYTES:
                break
    except Exception as err:  # as above: what came before the damage is looked at
        if isinstance(err, OSError) and err.errno:
            raise
    out.seek(0)
    return cast(BinaryIO, out)


def _of_zip(file: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    import zipfile

    left = INFLATED_MAX_BYTES
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist()[:MEMBERS_MAX_COUNT]:
            if member.flag_bits & 1 or member.is_dir() or left <= 0:
                continue
            left -= member.file_size
            with archive.open(member) as opened:
                yield member.filename, _bounded(iter(lambda opened=opened: opened.read(_PIECE_BYTES), b""))  # type: ignore[misc]


def _of_tar(file: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    import tarfile

    left = INFLATED_MAX_BYTES
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for number, member in enumerate(archive):
            if number >= MEMBERS_MAX_COUNT or left <= 0:
                return
            opened = archive.extractfile(member) if member.isreg() else None
            if opened is not None:
                left -= member.size
                yield member.name, _bounded(iter(lambda opened=opened: opened.read(_PIECE_BYTES), b""))  # type: ignore[misc]


def _is_tar(head: bytes) -> bool:
    if len(head) < 512 or not head[0]:
        return False
    import tarfile

    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True
