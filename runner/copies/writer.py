"""What a guest sends, as files on this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from runner.copies.beneath import open_directory
from runner.copies.notes import Notes
from runner.copies.places import Place, kind_of
from runner.copies.stream import DIRECTORY, FILE, LINK, Entry, Incoming
from runner.errors import RootdiskError
from runner.text import printable

# After these nothing more can be written either.
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_TYPES = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, LINK: stat.S_IFLNK}


class _Refused(Exception):
    """This entry is not written, and why; the copy goes on."""


def write_files(incoming: Incoming, place: Place, notes: Notes) -> None:
    """All of `incoming` at `place`. RootdiskError if it cannot go on; what single files lack is in `notes`."""
    writer = _Writer(place)
    for entry in incoming:
        if not entry.name:
            _check_root(entry, place)
        try:
            writer.write(entry, incoming)
        except _Refused as err:
            notes.failure(writer.shown(entry.name), str(err))
        except OSError as err:
            if err.errno in _FATAL:
                raise RootdiskError(f"cp: {printable(writer.shown(entry.name))}: {err.strerror}") from err
            notes.failure(writer.shown(entry.name), err.strerror or "cannot be written")
    writer.finish(0)


def _check_root(entry: Entry, place: Place) -> None:
    """The user has said what the root may be."""
    shown, kind = printable(place.shown), kind_of(_TYPES[entry.kind])
    if place.wants_directory and entry.kind != DIRECTORY:
        raise RootdiskError(f"cp: {shown}: it would be a directory, but what was copied is {kind}")
    if place.exists and entry.kind != FILE:
        raise RootdiskError(f"cp: {shown} is a file, and what was copied is {kind}")
    if entry.kind == LINK and not place.is_folder:
        # The next copy to this name would follow it, to where the guest has chosen.
        raise RootdiskError(
            f"cp: in the sandbox it is a link to {printable(entry.target)}",
            "copy what it leads to, or copy the link into a directory",
        )


class _Writer:
    """Below a place's descriptor. Directories get their modes and times when everything in them is written."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._new: list[tuple[bytes, Entry]] = []  # directories that we made and are in, by path below the descriptor

    def shown(self, name: bytes) -> bytes:
        return os.path.join(self._place.shown, name) if name else self._place.shown

    def write(self, entry: Entry, incoming: Incoming) -> None:
        path = b"/".join(filter(None, (self._place.name, entry.name)))
        if not path:
            return  # the directory that the user named; it stays as it is
        folder, _, last = path.rpartition(b"/")
        self._leave(folder)
        directory = open_directory(self._place.directory, folder)
        try:
            if self._is_there(directory, last, entry.kind):
                return
            if entry.kind == DIRECTORY:
                os.mkdir(last, 0o700, dir_fd=directory)
                self._new.append((path, entry))
            else:
                self._replace(entry, incoming, directory, last)
        finally:
            os.close(directory)

    def _is_there(self, directory: int, name: bytes, kind: bytes) -> bool:
        """Whether there is a directory already; _Refused if what is there is of another kind."""
        try:
            mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
        if stat.S_IFMT(mode) != _TYPES[kind]:
            raise _Refused(f"is {kind_of(mode)} here, and {kind_of(_TYPES[kind])} in the sandbox")
        return kind == DIRECTORY

    def _replace(self, entry: Entry, incoming: Incoming, directory: int, name: bytes) -> None:
        with _temporary(directory) as temporary:
            if entry.kind == LINK:
                os.symlink(entry.target, temporary, dir_fd=directory)
                os.utime(temporary, ns=(entry.time_ns,) * 2, dir_fd=directory, follow_symlinks=False)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
                    for piece in incoming.data:
                        file.write(piece)
                    file.flush()
                    os.fchmod(file.fileno(), entry.mode & 0o777)
                    os.utime(file.fileno(), ns=(entry.time_ns,) * 2)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)

    def _leave(self, folder: bytes) -> None:
        """Finish the directories that `folder` is not in."""
        depth = len(self._new)
        while depth and not (folder + b"/").startswith(self._new[depth - 1][0] + b"/"):
            depth -= 1
        self.finish(depth)

    def finish(self, depth: int) -> None:
        """Give the directories from `depth` on their modes and times, the innermost first."""
        while len(self._new) > depth:
            path, entry = self._new.pop()
            fd = open_directory(self._place.directory, path)
            try:
                os.fchmod(fd, entry.mode & 0o1777)
                os.utime(fd, ns=(entry.time_ns,) * 2)
            finally:
                os.close(fd)


@contextlib.contextmanager
def _temporary(directory: int) -> Iterator[bytes]:
    """A name in `directory` for what is renamed in the end; if it is not, nothing stays there."""
    name = b".rootdisk-cp." + os.urandom(8).hex().encode()
    try:
        yield name
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        raise
