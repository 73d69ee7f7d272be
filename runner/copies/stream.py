"""A copy's stream: entries and files' bytes between this machine and the guest's init; docs/layout-1.md, "Copies"."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from runner.errors import RootdiskError
from runner.text import printable
from runner.transport import Program

FILE, DIRECTORY, LINK = b"f", b"d", b"l"

NAME_MAX_BYTES = 4096
PART_MAX_BYTES = 255
FILE_MAX_BYTES = 16 << 40
CHILDREN_MAX = 1_000_000  # names that are remembered at once of a stream of version 1
PIECE_BYTES = 64 << 10
_HEAD = struct.Struct("<cxHHIqQ")
_TIME_MAX_NS = (1 << 63) - 1


class Entry(NamedTuple):
    """A file, directory or link. `name` is relative to what is copied, and empty for that itself."""

    kind: bytes
    name: bytes
    target: bytes  # of a link
    mode: int
    time_ns: int  # of last modification, since the epoch
    size: int  # of a file

    def head(self) -> bytes:
        head = _HEAD.pack(self.kind, len(self.name), len(self.target), self.mode, self.time_ns // 10**9, self.size)
        return head + self.name + self.target


def is_name(name: bytes) -> bool:
    """Whether `name` is a path that stays below where it begins, and that Linux takes."""
    return len(name) <= NAME_MAX_BYTES and b"\0" not in name and all(map(_is_part, name.split(b"/")))


def _is_part(part: bytes) -> bool:
    return 0 < len(part) <= PART_MAX_BYTES and part not in (b".", b"..")


class Hostile(RootdiskError):
    """The guest sends what no init of ours would."""


class Incoming:
    """What a guest sends, every entry checked. A file's bytes are in `data` until the next entry is asked for."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._order = _Order()
        self.data: Iterator[bytes] = iter(())

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            self._order.check(entry)
            self.data = self._read(entry.size if entry.kind == FILE else 0)
            yield entry
            for _ in self.data:  # what nobody wanted
                pass

    def _next(self) -> Entry | None:
        head = self._program.read_exactly(_HEAD.size)
        if not head:
            return None
        if len(head) < _HEAD.size:
            raise Hostile("cp: the sandbox's copy ends in the middle")
        kind, name_bytes, target_bytes, mode, time, size = _HEAD.unpack(head)
        if kind not in (FILE, DIRECTORY, LINK):
            raise Hostile("cp: the sandbox sends no copy of files")
        if max(name_bytes, target_bytes) > NAME_MAX_BYTES or mode > 0o7777 or (kind == FILE and size > FILE_MAX_BYTES):
            raise Hostile("cp: the sandbox sends a name, mode or size that no file has")
        words = self._program.read_exactly(name_bytes + target_bytes)
        if len(words) < name_bytes + target_bytes:
            raise Hostile("cp: the sandbox's copy ends in the middle")
        name, target = words[:name_bytes], words[name_bytes:]
        if name and not is_name(name):
            raise Hostile(f"cp: the sandbox sends the name {printable(name)}")
        if (kind == LINK) != bool(target) or b"\0" in target:
            raise Hostile(f"cp: the sandbox sends {printable(name)} as a link to {printable(target)}")
        time_ns = max(-_TIME_MAX_NS, min(_TIME_MAX_NS, time * 10**9))
        return Entry(kind, name, target, mode, time_ns, size)

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._program.read(min(size, PIECE_BYTES))
            if not piece:
                raise Hostile("cp: the sandbox's copy ends in the middle")
            size -= len(piece)
            yield piece


class _Level:
    """A directory whose entries come now."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.names: set[int] = set()  # of what has come, as hashes


class _Order:
    """Checks that a stream is one tree: its root first, then each entry in a directory that came before it, by a new name.

    So nothing lies below a file or link, and nothing comes twice.
    """

    def __init__(self) -> None:
        self._levels: list[_Level] = []
        self._began = False
        self._names = 0

    def check(self, entry: Entry) -> None:
        if not self._began:
            self._began = True
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
        names = self._levels[-1].names
        if hash(last) in names:
            raise Hostile(f"cp: the sandbox sends {printable(name)} twice")
        if self._names >= CHILDREN_MAX:
            raise Hostile(f"cp: more than {CHILDREN_MAX} files in a directory of a sandbox")
        names.add(hash(last))
        self._names += 1
