"""A copy's stream: entries and files' bytes between this machine and the guest's init; docs/layout-1.md, "Copies".

Inits of older artifacts speak version 1, which has files, directories and links only, whole seconds, no holes and no end mark.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rootdisk.errors import RootdiskError
from rootdisk.limits import NAME_MAX, PATH_MAX
from rootdisk.text import printable
from runner.channel.program import Program

HELLO = b"RDCOPY2\n"  # what an init that knows version 2 says first
FILE, DIRECTORY, LINK, HARD_LINK, FIFO, CHARACTER, BLOCK, END = b"f", b"d", b"l", b"h", b"p", b"c", b"b", b"e"
NAMES = {
    FILE: "a file",
    DIRECTORY: "a directory",
    LINK: "a link",
    HARD_LINK: "a hard link",
    FIFO: "a FIFO",
    CHARACTER: "a device",
    BLOCK: "a device",
}

NAME_MAX_BYTES = PATH_MAX
PART_MAX_BYTES = NAME_MAX
FILE_MAX_BYTES = 16 << 40
EXTENTS_MAX = 1 << 16
CHILDREN_MAX = 1_000_000  # names that are remembered at once of a stream of version 1
PIECE_BYTES = 64 << 10
_FAILED = 0xFFFF_FFFF
_HEAD = struct.Struct("<cBHHIqQ")
_NUMBER = struct.Struct("<I")
_EXTENT = struct.Struct("<QQ")
_TIME_MAX_NS = (1 << 63) - 1

Extents = list[tuple[int, int]]  # offsets and lengths, ascending


class Entry(NamedTuple):
    """A file, directory, link or the like. `name` is relative to what is copied, and empty for that itself."""

    kind: bytes
    name: bytes
    target: bytes = b""  # of a link; of a hard link another name in the copy
    mode: int = 0
    time_ns: int = 0  # of last modification, since the epoch
    size: int = 0  # of a file; of a device its numbers


def is_name(name: bytes) -> bool:
    """Return whether `name` is a path that stays below where it begins, and that Linux takes."""
    return len(name) <= NAME_MAX_BYTES and b"\0" not in name and all(map(_is_part, name.split(b"/")))


def _is_part(part: bytes) -> bool:
    return 0 < len(part) <= PART_MAX_BYTES and part not in (b".", b"..")


def is_device(major: int, minor: int) -> bool:
    """Return whether Linux has devices of these numbers; include/linux/kdev_t.h."""
    return 0 <= major < 1 << 12 and 0 <= minor < 1 << 20


def bounded_time(time_ns: int) -> int:
    """Return `time_ns`, or the nearest time that a stream can hold: the years 1677 to 2262."""
    return max(-_TIME_MAX_NS, min(_TIME_MAX_NS, time_ns))


class Hostile(RootdiskError):
    """The guest sends what no init of ours would."""


class Incoming:
    """The stream from a guest, every entry checked. The bytes of an entry are in `data` until the next one is read."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._begun = program.read_exactly(len(HELLO))
        self.version = 2 if self._begun == HELLO else 1
        if self.version > 1:
            self._begun = b""
        self._order = _Order(is_sorted=self.version > 1)
        self.extents: Extents = []
        self.data: Iterator[tuple[int, bytes]] = iter(())  # offsets and bytes of a file
        self.size = 0  # of the file whose data has been read
        self.is_whole = True

    @property
    def is_empty(self) -> bool:
        """Return whether nothing has come at all."""
        return self.version == 1 and not self._begun

    @property
    def has_root(self) -> bool:
        """Return whether an entry has come."""
        return self._order.began

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            self._order.check(entry)
            self.extents = self._read_extents(entry.size) if entry.kind == FILE else []
            self.data = self._read_data(entry)
            yield entry
            for _ in self.data:  # what nobody wanted
                pass

    def _read(self, count: int, *, may_end: bool = False) -> bytes:
        data = self._begun[:count]
        self._begun = self._begun[count:]
        data += self._program.read_exactly(count - len(data))
        if len(data) < count and not (may_end and not data):
            raise Hostile("cp: the sandbox's copy ends in the middle")
        return data

    def _next(self) -> Entry | None:
        head = self._read(_HEAD.size, may_end=self.version == 1)
        if not head:
            return None
        kind, zero, name_bytes, target_bytes, mode, time, size = _HEAD.unpack(head)
        if self.version > 1 and kind == END:
            if any(head[1:]) or self._program.read(1):
                raise Hostile("cp: the sandbox sends more than a copy")
            return None
        kinds = (FILE, DIRECTORY, LINK) if self.version == 1 else (FILE, DIRECTORY, LINK, FIFO, CHARACTER, BLOCK)
        if kind not in kinds or zero:
            raise Hostile("cp: the sandbox sends no copy of files")
        if max(name_bytes, target_bytes) > NAME_MAX_BYTES or mode > 0o7777 or (kind == FILE and size > FILE_MAX_BYTES):
            raise Hostile("cp: the sandbox sends a name, mode or size that no file has")
        if kind in (CHARACTER, BLOCK) and not is_device(size >> 32, size & 0xFFFF_FFFF):
            raise Hostile("cp: the sandbox sends a device that cannot be")
        words = self._read(name_bytes + target_bytes)
        name, target = words[:name_bytes], words[name_bytes:]
        if name and not is_name(name):
            raise Hostile(f"cp: the sandbox sends the name {printable(name)}")
        if (kind == LINK) != bool(target) or b"\0" in target:
            raise Hostile(f"cp: the sandbox sends {printable(name)} as a link to {printable(target)}")
        return Entry(kind, name, target, mode, bounded_time(time * 10**9 if self.version == 1 else time), size)

    def _read_extents(self, size: int) -> Extents:
        if self.version == 1:
            return [(0, size)] if size else []
        (count,) = _NUMBER.unpack(self._read(_NUMBER.size))
        if count > EXTENTS_MAX:
            raise Hostile("cp: the sandbox sends a file with too many holes")
        extents = list(_EXTENT.iter_unpack(self._read(count * _EXTENT.size)))
        at = 0
        for offset, length in extents:
            if not at <= offset < offset + length <= size:
                raise Hostile("cp: the sandbox sends a file whose parts lie outside of it")
            at = offset + length
        return extents

    def _read_data(self, entry: Entry) -> Iterator[tuple[int, bytes]]:
        self.size, self.is_whole = entry.size, True
        for offset, length in self.extents:
            yield from self._pieces(offset, length)
        while entry.kind == FILE and self.version > 1:
            (more,) = _NUMBER.unpack(self._read(_NUMBER.size))
            if more in (0, _FAILED):
                self.is_whole = not more
                return
            if more > PIECE_BYTES or self.size + more > FILE_MAX_BYTES:
                raise Hostile("cp: the sandbox sends a file that is too long")
            yield from self._pieces(self.size, more)
            self.size += more

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        end = offset + length
        while offset < end:
            piece = self._program.read(min(end - offset, PIECE_BYTES))
            if not piece:
                raise Hostile("cp: the sandbox's copy ends in the middle")
            yield offset, piece
            offset += len(piece)


class _Level:
    """A directory whose entries come now."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.last = b""
        self.names: set[int] = set()  # hashes; of version 1, which does not sort


class _Order:
    """Checks that a stream is one tree: its root first, then each entry in a directory that came before it, by a new name.

    So nothing lies below a file or link, and nothing comes twice.
    """

    def __init__(self, *, is_sorted: bool) -> None:
        self._is_sorted = is_sorted
        self._levels: list[_Level] = []
        self.began = False
        self._names = 0

    def check(self, entry: Entry) -> None:
        """Refuse an entry that does not follow the ones before it."""
        if not self.began:
            self.began = True
            if entry.name:
                raise Hostile(f"cp: the sandbox sends {printable(entry.name)} before the directory it is in")
        elif not entry.name:
            raise Hostile("cp: the sandbox sends two roots of one copy")
        else:
            self._enter(entry.name)
        if entry.kind == DIRECTORY:
            self._levels.append(_Level(entry.name))

    def _enter(self, name: bytes) -> None:
        folder, _, last = name.rpartition(b"/")
        while self._levels and self._levels[-1].path != folder:
            self._names -= len(self._levels.pop().names)
        if not self._levels:
            raise Hostile(f"cp: the sandbox sends {printable(name)}, which lies in no directory that it has sent")
        level = self._levels[-1]
        if last <= level.last if self._is_sorted else hash(last) in level.names:
            raise Hostile(f"cp: the sandbox sends {printable(name)} twice, or too late")
        level.last = last
        if not self._is_sorted:
            if self._names >= CHILDREN_MAX:
                raise Hostile(f"cp: more than {CHILDREN_MAX} files in a directory", "build its artifact again")
            level.names.add(hash(last))
            self._names += 1


class Lost(Exception):
    """The rest of a file's bytes cannot be had, and why."""


class Outgoing:
    """The stream to a guest."""

    def __init__(self, program: Program, version: int) -> None:
        self._program = program
        self.version = version

    def takes(self, kind: bytes) -> bool:
        """Return whether the guest's init knows entries of this kind."""
        return self.version > 1 or kind in (FILE, DIRECTORY, LINK)

    def put(self, entry: Entry) -> None:
        """Send an entry that is not a file."""
        time = entry.time_ns // 10**9 if self.version == 1 else bounded_time(entry.time_ns)
        lengths = len(entry.name), len(entry.target)
        head = _HEAD.pack(entry.kind, 0, *lengths, entry.mode, time, entry.size)
        self._program.write(head + entry.name + entry.target)

    def put_file(self, entry: Entry, extents: Extents, pieces: Iterable[bytes], tail: Iterable[bytes]) -> None:
        """Send a file: the bytes of its `extents`, then of its `tail`, by which it has become longer than `entry` says.

        Lost, from the two, is raised again when the guest knows that it is not to keep the file.
        """
        extents = extents if self.version > 1 else [(0, entry.size)] if entry.size else []
        self.put(entry)
        if self.version > 1:
            self._program.write(_NUMBER.pack(len(extents)) + b"".join(_EXTENT.pack(*extent) for extent in extents))
        left = sum(length for _, length in extents)
        try:
            for piece in pieces:
                self._program.write(piece)
                left -= len(piece)
            for piece in tail if self.version > 1 else ():
                self._program.write(_NUMBER.pack(len(piece)) + piece)
        except Lost as lost:
            if self.version == 1:
                raise RootdiskError(f"cp: {printable(entry.name)}: {lost}") from lost
            while left > 0:
                piece = bytes(min(left, PIECE_BYTES))
                self._program.write(piece)
                left -= len(piece)
            self._program.write(_NUMBER.pack(_FAILED))
            raise
        if self.version > 1:
            self._program.write(_NUMBER.pack(0))

    def end(self) -> None:
        """Say that everything has been sent."""
        if self.version > 1:
            self.put(Entry(END, b""))
