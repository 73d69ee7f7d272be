"""Modules of Go programs, from the section `.go.buildinfo` that the linker writes; Go's debug/buildinfo.

Only the form of Go 1.18 and later is read, in which the texts follow the header. Settings of the build are not: they may hold
what nobody wants to publish.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

ELF = b"\x7fELF"
SECTION = b".go.buildinfo"
MAGIC = b"\xff Go buildinf:"
PROGRAM_MIN_BYTES = 256 << 10  # the runtime alone is larger
INFO_MAX_BYTES = 8 << 20
MODULES_MAX_COUNT = 20_000
_SECTIONS_MAX_COUNT = 4096
_NAMES_MAX_BYTES = 1 << 20
_TEXT_MAX = 4096
_SENTINEL_BYTES = 16
_INLINE = 2  # a flag

Read = Callable[[int, int], bytes]  # offset and length; fewer bytes at the end of the file


class Module(NamedTuple):
    """A module in a program."""

    path: str
    version: str


def modules(read: Read) -> Iterator[Module]:
    """Yield the modules of the program that `read` reads, and Go's own library; nothing if it is not a Go program.

    Raises:
        ValueError: It says that it is one, and is malformed.
    """
    info = _section(read)
    if not info.startswith(MAGIC) or len(info) < 32 or not info[15] & _INLINE:
        return
    go, at = _text(info, 32)
    text, _ = _text(info, at)
    version = go.decode("utf-8", "replace").split(" ")[0]
    if version.startswith("go") and len(version) < 100:
        yield Module("stdlib", version.removeprefix("go"))
    yield from _listed(text[_SENTINEL_BYTES:-_SENTINEL_BYTES].decode("utf-8", "replace"))


def _section(read: Read) -> bytes:
    """Return the section with the build information; nothing if there is none, or the file is not an ELF program."""
    head = read(0, 64)
    if len(head) < 64 or not head.startswith(ELF) or head[4] not in (1, 2) or head[5] not in (1, 2):
        return b""
    order = "<" if head[5] == 1 else ">"
    if head[4] == 2:
        (offset,), (size, count, names) = (
            struct.unpack_from(f"{order}Q", head, 40),
            struct.unpack_from(f"{order}HHH", head, 58),
        )
        entry = struct.Struct(f"{order}I4x8x8xQQ")
    else:
        (offset,), (size, count, names) = (
            struct.unpack_from(f"{order}I", head, 32),
            struct.unpack_from(f"{order}HHH", head, 46),
        )
        entry = struct.Struct(f"{order}I4x4x4xII")
    if not 0 < count <= _SECTIONS_MAX_COUNT or not entry.size <= size <= 256 or names >= count:
        return b""
    table = read(offset, size * count)
    if len(table) < size * count:
        return b""
    sections = [entry.unpack_from(table, number * size) for number in range(count)]
    _, at, length = sections[names]
    texts = read(at, min(length, _NAMES_MAX_BYTES))
    for name, at, length in sections:
        if texts[name : name + len(SECTION) + 1] == SECTION + b"\0":
            if length > INFO_MAX_BYTES:
                raise ValueError("its build information is too long")
            return read(at, length)
    return b""


def _text(info: bytes, at: int) -> tuple[bytes, int]:
    """Read a text with its length before it, as encoding/binary's Uvarint. Return it and where it ends."""
    length = shift = 0
    while True:
        if at >= len(info) or shift > 28:
            raise ValueError("its build information is damaged")
        length |= (info[at] & 0x7F) << shift
        shift += 7
        at += 1
        if info[at - 1] < 0x80:
            break
    if length > len(info) - at:
        raise ValueError("its build information is damaged")
    return info[at : at + length], at + length


def _listed(text: str) -> Iterator[Module]:
    """Parse the list of modules; runtime/debug.ParseBuildInfo.

    A replacement stands for what is before it, unless it is a directory of the builder's.
    """
    last: Module | None = None
    count = 0
    for line in text.splitlines():
        words = line.split("\t")
        if words[0] == "=>" and len(words) >= 3:
            last = last if words[1].startswith((".", "/")) else Module(words[1], words[2])
            continue
        if last is not None:
            yield last
            last = None
        if words[0] in ("mod", "dep") and len(words) >= 3:
            if len(line) > _TEXT_MAX or count == MODULES_MAX_COUNT:
                raise ValueError("its list of modules is too long")
            last, count = Module(words[1], words[2]), count + 1
    if last is not None:
        yield last
