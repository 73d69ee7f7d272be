"""Files of this machine, to a guest.

They are read below a directory descriptor without following links: a guest that may write there, as in a shared directory,
cannot have other files of this machine copied into it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator

from runner.channel.copies.beneath import Beneath
from runner.channel.copies.notes import Notes
from runner.channel.copies.places import kind_of
from runner.channel.copies.stream import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    EXTENTS_MAX,
    FIFO,
    FILE,
    FILE_MAX_BYTES,
    LINK,
    NAME_MAX_BYTES,
    PART_MAX_BYTES,
    PIECE_BYTES,
    Entry,
    Extents,
    Lost,
    Outgoing,
)

_KINDS = {
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFREG: FILE,
    stat.S_IFLNK: LINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK,
}
_UNSIZED_MAX_BYTES = 32 << 20
_UNSIZED_STEP_BYTES = 1 << 20
_GROWTH_MAX_BYTES = 1 << 30


def send_files(source: bytes, outgoing: Outgoing, notes: Notes, *, follow: bool) -> None:
    """Send `source` and all below it; links as links, but `source` itself if `follow`. What cannot be read is in `notes`."""
    _Reader(source, outgoing, notes).send(follow)


class _Reader:
    def __init__(self, source: bytes, outgoing: Outgoing, notes: Notes) -> None:
        self._source = source
        self._base = re.sub(rb"(?<=.)(/\.?)+$", b"", source)  # for messages
        self._outgoing = outgoing
        self._notes = notes

    def send(self, follow: bool) -> None:
        """Send the source, and if it is a directory everything in it."""
        if self._put(None, self._source, b"", follow) != DIRECTORY:
            return
        try:
            root = os.open(self._source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            self._fail(b"", err)
            return
        try:
            with Beneath(root) as beneath:
                self._send_below(beneath)
        finally:
            os.close(root)

    def _send_below(self, beneath: Beneath) -> None:
        """Send everything in the root, sorted, a directory before its content."""
        levels = [(b"", self._list(beneath, b""))]
        while levels:
            folder, names = levels[-1]
            if not names:
                levels.pop()
                continue
            last = names.pop()
            name = os.path.join(folder, last)
            if len(name) > NAME_MAX_BYTES or len(last) > PART_MAX_BYTES:
                self._fail(name, OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)))
                continue
            try:
                directory = beneath.folder(folder)
            except OSError as err:
                self._fail(folder, err)
                levels.pop()
                continue
            if self._put(directory, last, name, follow=False) == DIRECTORY:
                levels.append((name, self._list(beneath, name)))

    def _list(self, beneath: Beneath, folder: bytes) -> list[bytes]:
        """The names in a directory, the first one last."""
        try:
            return sorted(map(os.fsencode, os.listdir(beneath.folder(folder))), reverse=True)
        except OSError as err:
            self._fail(folder, err)
            return []

    def _put(self, directory: int | None, own: bytes, name: bytes, follow: bool) -> bytes | None:
        """Send `own` in `directory` as `name`; its kind if it was."""
        try:
            info = os.stat(own, dir_fd=directory, follow_symlinks=follow)
            kind = _KINDS.get(stat.S_IFMT(info.st_mode))
            if kind is None:
                self._leave_out(name)
                return None
            if not self._outgoing.takes(kind):
                self._notes.failure(
                    self._shown(name), f"is {kind_of(info.st_mode)}, which the sandbox's older init does not take"
                )
                return None
            if kind == FILE:
                self._put_file(directory, own, name, follow)
                return kind
            target = os.readlink(own, dir_fd=directory) if kind == LINK else b""
        except OSError as err:
            self._fail(name, err)
            return None
        except Lost as lost:
            self._notes.failure(self._shown(name), str(lost))
            return None
        size = os.major(info.st_rdev) << 32 | os.minor(info.st_rdev) if kind in (CHARACTER, BLOCK) else 0
        self._outgoing.put(Entry(kind, name, target, stat.S_IMODE(info.st_mode), info.st_mtime_ns, size))
        return kind

    def _put_file(self, directory: int | None, own: bytes, name: bytes, follow: bool) -> None:
        # What it has become meanwhile may be a FIFO: nothing is waited for.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        fd = os.open(own, flags, dir_fd=directory)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise Lost("became another kind of file while it was copied")
            if info.st_size > FILE_MAX_BYTES:
                raise Lost("is larger than 16 TiB")
            entry = Entry(FILE, name, b"", stat.S_IMODE(info.st_mode), info.st_mtime_ns, info.st_size)
            if _is_unsized(fd, info):
                data = _read_unsized(fd)
                entry = entry._replace(size=len(data))
                self._outgoing.put_file(entry, [(0, len(data))] if data else [], [data] if data else [], [])
                return
            extents = find_extents(fd, info.st_size) if self._outgoing.version > 1 else [(0, info.st_size)]
            self._outgoing.put_file(entry, extents, _read_extents(fd, extents), _read_tail(fd, info.st_size))
        finally:
            os.close(fd)

    def _leave_out(self, name: bytes) -> None:
        if name:
            self._notes.remark(self._shown(name) + b": is a socket, left out")
        else:
            self._notes.failure(self._source, "is a socket")

    def _fail(self, name: bytes, err: OSError) -> None:
        self._notes.failure(self._shown(name), err.strerror or "cannot be read")

    def _shown(self, name: bytes) -> bytes:
        return os.path.join(self._base, name) if name else self._source


def _is_unsized(fd: int, info: os.stat_result) -> bool:
    """Return whether the size may say nothing, as in /proc and /sys. Else a file without blocks is empty or one hole."""
    if not info.st_size:
        return True
    return not info.st_blocks and info.st_size <= _UNSIZED_STEP_BYTES and find_extents(fd, info.st_size) != []


def _read_unsized(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    data = bytearray()
    while piece := os.read(fd, _UNSIZED_STEP_BYTES):
        data += piece
        if len(data) > _UNSIZED_MAX_BYTES:
            raise Lost("its size is not known, and it is larger than 32 MiB")
    return bytes(data)


def find_extents(fd: int, size: int) -> Extents:
    """Return the data ranges of a file; all of it if unknown. The last range may contain holes if there are too many."""
    extents: Extents = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = size if len(extents) == EXTENTS_MAX - 1 else min(size, os.lseek(fd, start, os.SEEK_HOLE))
        except OSError as err:
            if err.errno == errno.ENXIO:
                break
            start, end = at, size
        if start >= end:
            break
        extents.append((start, end - start))
        at = end
    return extents


def _read_extents(fd: int, extents: Extents) -> Iterator[bytes]:
    for offset, length in extents:
        end = offset + length
        while offset < end:
            piece = _read_at(fd, min(end - offset, PIECE_BYTES), offset)
            if not piece:
                raise Lost("became shorter while it was copied")
            yield piece
            offset += len(piece)


def _read_tail(fd: int, size: int) -> Iterator[bytes]:
    at = size
    while piece := _read_at(fd, PIECE_BYTES, at):
        yield piece
        at += len(piece)
        if at - size > _GROWTH_MAX_BYTES:
            raise Lost("grows faster than it is copied")


def _read_at(fd: int, count: int, offset: int) -> bytes:
    try:
        return os.pread(fd, count, offset)
    except OSError as err:
        raise Lost(err.strerror or "cannot be read") from err
