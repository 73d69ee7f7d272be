"""Write the stream of a guest to files on this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from rootdisk.durable import write_at
from rootdisk.errors import RootdiskError
from rootdisk.text import printable
from runner.channel.copies.beneath import Beneath
from runner.channel.copies.notes import Notes
from runner.channel.copies.places import Place, kind_of
from runner.channel.copies.stream import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, LINK, NAMES, Entry, Incoming

# After these nothing more can be written either.
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_TYPES = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, LINK: stat.S_IFLNK, FIFO: stat.S_IFIFO}


class _Refused(Exception):
    """An entry that is not written, with the reason; the copy continues."""


def write_files(incoming: Incoming, place: Place, notes: Notes) -> None:
    """Write `incoming` at `place`. RootdiskError if that must stop; problems of single files go to `notes`."""
    with Beneath(place.directory) as beneath:
        writer = _Writer(place, beneath, notes)
        for entry in incoming:
            if not entry.name:
                _check_root(entry, place)
            with writer.failures(entry.name):
                writer.write(entry, incoming)
        writer.leave(b"")


def _check_root(entry: Entry, place: Place) -> None:
    """The user has said what the root may be."""
    shown, kind = printable(place.shown), NAMES[entry.kind]
    if place.wants_directory and entry.kind != DIRECTORY:
        raise RootdiskError(f"cp: {shown}: it would be a directory, but what was copied is {kind}")
    if place.exists and entry.kind != FILE:
        raise RootdiskError(f"cp: {shown} is a file, and what was copied is {kind}")
    if entry.kind == LINK and not place.is_folder:
        # The next copy to this name would follow it, to where the guest has chosen.
        raise RootdiskError(
            f"cp: in the sandbox it is a link to {printable(entry.target)}",
            "cp -L copies what it leads to; or copy the link into a directory",
        )


class _Writer:
    """Below a place's descriptor. Directories get their modes and times when everything in them is written."""

    def __init__(self, place: Place, beneath: Beneath, notes: Notes) -> None:
        self._place = place
        self._beneath = beneath
        self._notes = notes
        self._new: list[tuple[bytes, Entry]] = []  # directories that we made and are in, by path below the descriptor

    @contextlib.contextmanager
    def failures(self, name: bytes) -> Iterator[None]:
        """Note failures for the entry `name`, unless the next entries would fail too."""
        path = os.path.join(self._place.shown, name) if name else self._place.shown
        try:
            yield
        except _Refused as err:
            self._notes.failure(path, str(err))
        except OSError as err:
            if err.errno in _FATAL:
                raise RootdiskError(f"cp: {printable(path)}: {err.strerror}") from err
            self._notes.failure(path, err.strerror or "cannot be written")

    def write(self, entry: Entry, incoming: Incoming) -> None:
        """Write an entry below the place."""
        path = b"/".join(filter(None, (self._place.name, entry.name)))
        if not path:
            return  # the directory that the user named; it stays as it is
        self.leave(path)
        if entry.kind in (CHARACTER, BLOCK):
            raise _Refused("is a device in the sandbox, and none is made on this machine")
        folder, _, last = path.rpartition(b"/")
        directory = self._beneath.folder(folder)
        if self._is_there(directory, last, entry.kind):
            return
        if entry.kind == DIRECTORY:
            os.mkdir(last, 0o700, dir_fd=directory)
            self._new.append((path, entry))
            return
        with _temporary(directory) as temporary:
            if entry.kind == LINK:
                os.symlink(entry.target, temporary, dir_fd=directory)
                os.utime(temporary, ns=(entry.time_ns,) * 2, dir_fd=directory, follow_symlinks=False)
            elif entry.kind == FIFO:
                os.mkfifo(temporary, entry.mode & 0o777, dir_fd=directory)
            elif not self._write_file(entry, incoming, directory, temporary):
                return
            os.rename(temporary, last, src_dir_fd=directory, dst_dir_fd=directory)

    def _is_there(self, directory: int, name: bytes, kind: bytes) -> bool:
        """Return whether the directory or FIFO exists already; _Refused if something of another kind does."""
        try:
            mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
        if stat.S_IFMT(mode) != _TYPES[kind]:
            raise _Refused(f"is {kind_of(mode)} here, and {NAMES[kind]} in the sandbox")
        return kind in (DIRECTORY, FIFO)

    def _write_file(self, entry: Entry, incoming: Incoming, directory: int, name: bytes) -> bool:
        """Write a file and return whether it is complete."""
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            for offset, piece in incoming.data:
                write_at(fd, piece, offset)
            if not incoming.is_whole:
                self._notes.partial(os.path.join(self._place.shown, entry.name) if entry.name else self._place.shown)
                return False
            os.ftruncate(fd, incoming.size)
            os.fchmod(fd, entry.mode & 0o777)
            os.utime(fd, ns=(entry.time_ns,) * 2)
        finally:
            os.close(fd)
        return True

    def leave(self, path: bytes) -> None:
        """Give the directories that `path` does not lie in their modes and times, the innermost first."""
        while self._new and not path.startswith(self._new[-1][0] + b"/"):
            folder, entry = self._new.pop()
            with self.failures(entry.name):
                fd = self._beneath.folder(folder)
                os.fchmod(fd, entry.mode & 0o1777)
                os.utime(fd, ns=(entry.time_ns,) * 2)


@contextlib.contextmanager
def _temporary(directory: int) -> Iterator[bytes]:
    """Yield a temporary name in `directory`; a file of that name is removed in the end."""
    name = b".rootdisk-cp." + os.urandom(8).hex().encode()
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
