"""Tars for tests, header by header, right ones and wrong ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

from imagetool.tree.index import TarIndex
from imagetool.tree.tar import scan, scan_tar
from imagetool.tree.tar_stream import TarStream
from rootdisk.errors import RootdiskError

END = bytes(1024)


def octal(value: int, width: int) -> bytes:
    """A number field; base 256 where octal does not hold it."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return ((value & ((1 << (8 * width - 1)) - 1)) | (1 << (8 * width - 1))).to_bytes(width, "big")


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 1_000_000_000,
    target: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: int = 0,
    minor: int = 0,
    tail: bytes = b"",
    checksum: Callable[[bytes], int] = sum,
) -> bytes:
    """One 512-byte header; `tail` is what stands from byte 345 on."""
    block = name.ljust(100, b"\0") + octal(mode, 8) + octal(uid, 8) + octal(gid, 8) + octal(size, 12) + octal(mtime, 12)
    block += b" " * 8 + kind + target.ljust(100, b"\0") + magic + bytes(64) + octal(major, 8) + octal(minor, 8) + tail
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % checksum(block) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(records: list[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    data = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while length != len(rest) + len(str(length)):
            length = len(rest) + len(str(length))
        data += str(length).encode() + rest
    return header(b"pax", kind, size=len(data)) + padded(data)


def file(name: bytes, data: bytes = b"", **keys: object) -> bytes:
    return header(name, size=len(data), **keys) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **keys: object) -> bytes:
    return header(name, b"5", mode=mode, **keys)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> bytes:
    return header(name, b"2", target=target, mode=0o777)


def hard_link(name: bytes, target: bytes, **keys: object) -> bytes:
    return header(name, b"1", target=target, **keys)  # type: ignore[arg-type]


def index(tar: bytes, name: str = "test", *, bare: bool = False) -> TarIndex:
    """`tar` scanned in a file. While it comes in pieces it must be the same, or wrong in the same way."""
    size = len(tar) // 20 + 7
    pieces = (tar[at : at + size] for at in range(0, len(tar), size))
    in_file = _outcome(lambda: index_once(tar, name, bare=bare))
    with tempfile.TemporaryFile() as out:
        coming = _outcome(lambda: scan_tar(TarStream(pieces, out.fileno()), name, bare=bare))
    if isinstance(in_file, RootdiskError):
        assert (type(coming), str(coming)) == (type(in_file), str(in_file))
        raise in_file
    assert coming == in_file
    return in_file


def index_once(tar: bytes, name: str = "test", *, bare: bool = False) -> TarIndex:
    """`tar` scanned in a file, once."""
    with tempfile.TemporaryFile() as file:
        file.write(tar)
        file.flush()
        return scan(file.fileno(), len(tar), name, bare=bare)


def _outcome(scanned: Callable[[], TarIndex]) -> TarIndex | RootdiskError:
    try:
        return scanned()
    except RootdiskError as err:
        return err
