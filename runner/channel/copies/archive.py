"""A copy as a tar archive, on standard output or from standard input."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import zstandard

from rootdisk.compression import HEAD_BYTES, compression
from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.channel.copies.notes import Notes
from runner.channel.copies.stream import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    EXTENTS_MAX,
    FIFO,
    FILE,
    FILE_MAX_BYTES,
    HARD_LINK,
    LINK,
    NAMES,
    PIECE_BYTES,
    Entry,
    Extents,
    Incoming,
    Outgoing,
    is_device,
    is_name,
)

_TYPES = {
    FILE: tarfile.REGTYPE,
    DIRECTORY: tarfile.DIRTYPE,
    LINK: tarfile.SYMTYPE,
    HARD_LINK: tarfile.LNKTYPE,
    FIFO: tarfile.FIFOTYPE,
    CHARACTER: tarfile.CHRTYPE,
    BLOCK: tarfile.BLKTYPE,
}
_KINDS = {
    **{kind: name for name, kind in _TYPES.items()},
    **dict.fromkeys((tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE), FILE),
}
_HOLES_MIN_BYTES = 1 << 20  # fewer are written as zeros, which every reader understands
_HEADERS_MAX_BYTES = 4 << 20  # of one member
_GLOBAL_MAX_BYTES = 64 << 10
_TIME_MAX_S = 1 << 40


def write_tar(incoming: Incoming, out: BinaryIO, root: bytes, notes: Notes) -> None:
    """Write `incoming` as a tar archive, in a directory `root`."""
    written = 0
    for entry in incoming:
        name = root + b"/" + entry.name if entry.name else root
        header, extents = _header(entry, name, incoming.extents)
        out.write(header)
        written += len(header) + _write_data(entry, incoming, extents, out)
        if entry.kind == FILE and not incoming.is_whole:
            notes.partial(name)
        elif entry.kind == FILE and incoming.size > entry.size:
            notes.failure(name, "grew while it was copied; the archive has as much of it as there was at first")
    end = 2 * tarfile.BLOCKSIZE
    out.write(bytes(end + -(written + end) % tarfile.RECORDSIZE))
    out.flush()


def _header(entry: Entry, name: bytes, data: Extents) -> tuple[bytes, Extents]:
    """Return the header of a file and the ranges that follow: without its holes, if there are many."""
    member = tarfile.TarInfo(os.fsdecode(name))
    # Owners stay behind, so set-user-ID must too: the program would belong to the user who extracts it, or to root.
    member.type, member.mode = _TYPES[entry.kind], entry.mode & (0o1777 if entry.kind == DIRECTORY else 0o777)
    member.linkname, member.mtime = os.fsdecode(entry.target), entry.time_ns // 10**9
    before, extents = b"", [(0, entry.size)] if entry.kind == FILE else []
    if entry.kind in (CHARACTER, BLOCK):
        member.devmajor, member.devminor = entry.size >> 32, entry.size & 0xFFFF_FFFF
    elif entry.kind == FILE and entry.size - sum(length for _, length in data) >= _HOLES_MIN_BYTES:
        extents = data
        before = _sparse_map(entry.size, data)
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": member.name}
        member.pax_headers["GNU.sparse.realsize"] = str(entry.size)
        member.name = f"{os.path.dirname(member.name) or '.'}/GNUSparseFile.0/{os.path.basename(member.name)}"
    member.size = len(before) + sum(length for _, length in extents)
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + before, extents


def _sparse_map(size: int, extents: Extents) -> bytes:
    """GNU tar's "PAX Format, Version 1.0" of sparse files: a map of what there is, before it."""
    numbers = [number for extent in (*extents, (size, 0)) for number in extent]
    text = b"%d\n" % (len(extents) + 1) + b"".join(b"%d\n" % number for number in numbers)
    return text + bytes(-len(text) % tarfile.BLOCKSIZE)


def _write_data(entry: Entry, incoming: Incoming, extents: Extents, out: BinaryIO) -> int:
    """A file's bytes, padded, and how many. Holes are written as zeros if `extents` covers them."""
    is_whole_file = extents == [(0, entry.size)]
    at = written = 0
    for offset, piece in incoming.data:
        if offset >= entry.size:
            continue  # what it has become longer by
        if is_whole_file:
            written += _write_zeros(offset - at, out)
        out.write(piece)
        written += len(piece)
        at = offset + len(piece)
    if is_whole_file:
        written += _write_zeros(entry.size - at, out)
    return written + _write_zeros(-written % tarfile.BLOCKSIZE, out)


def _write_zeros(count: int, out: BinaryIO) -> int:
    for done in range(0, count, PIECE_BYTES):
        out.write(bytes(min(PIECE_BYTES, count - done)))
    return count


class _Member(tarfile.TarInfo):
    """A member whose broken header is not taken for the archive's end, and whose header is bounded."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        """Read the next header. ReadError instead of an end: it is damaged, or has no end mark."""
        # What TarFile.next calls in every version; updates of Python 3.11 and 3.13 have stopped calling frombuf.
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError as err:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without an end mark: was it cut off?") from err
        except tarfile.HeaderError as err:
            raise tarfile.ReadError(str(err)) from err

    def _proc_member(self, archive: _Archive) -> _Member | None:
        """Check a header before tarfile processes it; this is "the entry point" for subclasses in tarfile."""
        if self.size < 0:
            raise tarfile.ReadError("a negative size")
        if self.type == tarfile.XGLTYPE:
            archive.global_bytes += self.size
            if archive.global_bytes > _GLOBAL_MAX_BYTES:
                raise tarfile.ReadError("too many global headers")
        return cast("_Member | None", super()._proc_member(archive))  # type: ignore[misc]


class _Archive(tarfile.TarFile):
    tarinfo = _Member
    global_bytes = 0


class _Bounded:
    """A file that returns at most `left` bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.left = _HEADERS_MAX_BYTES

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes."""
        data = self._file.read(count)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"more than {_HEADERS_MAX_BYTES >> 20} MiB of headers for one file")
        return data


def read_tar(source: BinaryIO, outgoing: Outgoing, notes: Notes) -> None:
    """Send a tar archive's files; it may be compressed by gzip, bzip2, xz or zstd."""
    import lzma

    try:
        bounded = _Bounded(_decompressed(source))
        with _Archive.open(fileobj=cast("BinaryIO", bounded), mode="r|") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]
                bounded.left = FILE_MAX_BYTES
                _send_member(archive, member, outgoing, notes)
                bounded.left = _HEADERS_MAX_BYTES
            while bounded.read(PIECE_BYTES):  # padding, and what checks the compression
                pass
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, zlib.error) as err:
        raise BadInput(f"cp: standard input is not a tar archive: {printable(err)}") from err
    except (lzma.LZMAError, zstandard.ZstdError, OSError) as err:
        reason = err.strerror if isinstance(err, OSError) else None
        raise BadInput(f"cp: standard input cannot be read: {printable(reason or err)}") from err


def _decompressed(source: BinaryIO) -> BinaryIO:
    peek = getattr(source, "peek", None)
    how = compression(peek(HEAD_BYTES)) if peek else ""
    if how == "gzip":
        import gzip

        return cast("BinaryIO", gzip.GzipFile(fileobj=source))
    if how == "bzip2":
        import bz2

        return cast("BinaryIO", bz2.BZ2File(source))
    if how in ("xz", "lzma"):
        import lzma

        return cast("BinaryIO", lzma.LZMAFile(source))
    if how == "zstd":
        return cast("BinaryIO", zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True))
    return source


def _send_member(archive: tarfile.TarFile, member: tarfile.TarInfo, outgoing: Outgoing, notes: Notes) -> None:
    kind = _KINDS.get(member.type)
    if kind is None:
        raise BadInput(f"cp: {printable(member.name)} in the archive is of a kind that is not known: {member.type!r}")
    name = _checked(member.name)
    if not name and kind != DIRECTORY:
        raise BadInput(f"cp: the archive has {NAMES[kind]} in place of the target")
    if not 0 <= member.size <= FILE_MAX_BYTES or not abs(member.mtime) < _TIME_MAX_S:
        raise BadInput(f"cp: {printable(member.name)} in the archive has a size or time that no file has")
    if not outgoing.takes(kind):
        notes.failure(member.name, f"is {NAMES[kind]}, which the sandbox's older init does not take")
        return
    target, size = b"", member.size if kind == FILE else 0
    if kind == LINK:
        target = os.fsencode(member.linkname)
        if not 0 < len(target) < 4096 or b"\0" in target:
            raise BadInput(f"cp: {printable(member.name)} in the archive is a link to {printable(target)}")
    elif kind == HARD_LINK:
        target = _checked(member.linkname)
        if not target:
            raise BadInput(f"cp: {printable(member.name)} in the archive is a link to the target")
    elif kind in (CHARACTER, BLOCK):
        if not is_device(member.devmajor, member.devminor):
            raise BadInput(f"cp: {printable(member.name)} in the archive is a device that cannot be")
        size = member.devmajor << 32 | member.devminor
    entry = Entry(kind, name, target, member.mode & 0o7777, int(member.mtime * 10**9), size)
    if kind != FILE:
        outgoing.put(entry)
        return
    parts = _parts(member)
    is_dense = outgoing.version == 1 or len(parts) > EXTENTS_MAX
    whole = [(0, member.size)] if member.size else []
    outgoing.put_file(entry, whole if is_dense else parts, _pieces(archive, member, parts, is_dense), [])


def _checked(text: str) -> bytes:
    """A name of the archive as one below the target; empty for that itself."""
    name = os.path.normpath(os.fsencode(text)) if text else b""
    if name == b".":
        return b""
    if not is_name(name):
        raise BadInput(f"cp: the archive's name {printable(text)} is none below the target")
    return name


def _parts(member: tarfile.TarInfo) -> Extents:
    """Yield the parts of a file that the archive has."""
    sparse = getattr(member, "sparse", None)
    if sparse is None:
        return [(0, member.size)] if member.size else []
    parts, at = [], 0
    for offset, length in sparse:
        if not at <= offset <= offset + length <= member.size:
            raise BadInput(f"cp: {printable(member.name)} in the archive has parts that lie outside of it")
        at = offset + length
        if length:
            parts.append((offset, length))
    return parts


def _pieces(archive: tarfile.TarFile, member: tarfile.TarInfo, parts: Extents, is_dense: bool) -> Iterator[bytes]:
    """The bytes of `parts`, and if `is_dense` zeros between them."""
    assert archive.fileobj is not None
    at = 0
    for offset, length in (*parts, (member.size, 0)):
        while is_dense and at < offset:
            zeros = bytes(min(PIECE_BYTES, offset - at))
            yield zeros
            at += len(zeros)
        at = offset + length
        while length:
            piece = archive.fileobj.read(min(length, PIECE_BYTES))
            if not piece:
                raise tarfile.ReadError("unexpected end of data")
            yield piece
            length -= len(piece)
