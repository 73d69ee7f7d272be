"""Files into and out of a running sandbox: a stream of entries that the guest's init reads or writes; docs/layout-1.md, "Copies".

What comes out of a guest is hostile. Every name is walked one directory at a time without following a link, nothing
is made outside of the target, and set-user-ID bits stay behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import tarfile
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from runner import frames
from runner.errors import BadInput, RootdiskError
from runner.frames import WINDOW, Decoder, frame, frame_number, number
from runner.records import pack as pack_records

_ENTRY = struct.Struct("<cxHHIqQ")
_NAME_MAX_BYTES = 4096
_ERRORS_MAX_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
FILE, DIRECTORY, LINK = b"f", b"d", b"l"


class Entry(NamedTuple):
    """A file, directory or symbolic link. `name` is relative to what is copied, and empty for that itself."""

    kind: bytes
    name: bytes
    target: bytes  # of a link
    mode: int
    time: int  # of last modification, Unix seconds
    size: int  # of a file, bytes that follow

    def head(self) -> bytes:
        head = _ENTRY.pack(self.kind, len(self.name), len(self.target), self.mode, self.time, self.size)
        return head + self.name + self.target


class Program:
    """A program in a guest, its standard input and output as this process reads and writes them."""

    def __init__(self, sock: socket.socket, argv: list[bytes]) -> None:
        self._sock = sock
        self._decoder = Decoder()
        self._credit = WINDOW
        self._out: deque[bytes] = deque()
        self._errors = b""
        self._status: int | None = None
        words = [("cmd", word) for word in argv]
        request = [*words, ("user", b"0"), ("workdir", b"/"), ("stdin", b"1")]
        sock.sendall(frame(frames.EXEC, pack_records(request)))

    def read(self, count: int) -> bytes:
        """Up to `count` bytes of its output; b"" at the end."""
        while not self._out and self._status is None:
            self._receive()
        if not self._out:
            return b""
        data = self._out.popleft()
        if len(data) > count:
            self._out.appendleft(data[count:])
            data = data[:count]
        self._send(frame_number(frames.CREDIT, len(data)))
        return data

    def read_exactly(self, count: int) -> bytes:
        """`count` bytes; fewer only at the end."""
        pieces = []
        while count and (piece := self.read(count)):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def write(self, data: bytes) -> None:
        """All of `data` to its input; RootdiskError where it has ended."""
        view = memoryview(data)
        while view:
            while not self._credit:
                self._receive()
                if self._status is not None:
                    self.finish()
                    raise RootdiskError("the sandbox took not all of it")
            piece = view[: min(self._credit, _PIECE_BYTES)]
            self._send(frame(frames.STDIN, bytes(piece)))
            self._credit -= len(piece)
            view = view[len(piece) :]

    def finish(self) -> None:
        """Wait for its end; RootdiskError with what it said where it failed."""
        if self._status is None:
            self._send(frame(frames.STDIN))
        while self._status is None:
            self._receive()
        if self._status:
            lines = self._errors.decode(errors="replace").strip().splitlines()
            raise RootdiskError(f"cp: {lines[0] if lines else f'status {self._status} in the sandbox'}")

    def _send(self, data: bytes) -> None:
        # When the program has ended, nobody may be there any more to hear it; what it has said is still to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._sock.sendall(data)

    def _receive(self) -> None:
        try:
            data = self._sock.recv(256 << 10)
        except ConnectionResetError:
            data = b""
        if not data:
            raise RootdiskError("cp: the sandbox has ended")
        for kind, _, payload in self._decoder.feed(data):
            if kind == frames.STDOUT:
                self._out.append(payload)
            elif kind == frames.STDERR:
                self._errors = (self._errors + payload)[:_ERRORS_MAX_BYTES]
                self._send(frame_number(frames.CREDIT, len(payload)))
            elif kind == frames.CREDIT:
                self._credit = min(WINDOW, self._credit + number(payload))
            elif kind == frames.EXIT:
                self._status = number(payload) & 0xFF
            elif kind == frames.ERROR:
                raise RootdiskError(f"cp: {payload.decode(errors='replace')}")


def entries(program: Program) -> Iterator[Entry]:
    """What the guest sends. A file's bytes are to be read before the next entry is asked for."""
    while head := program.read_exactly(_ENTRY.size):
        if len(head) < _ENTRY.size:
            raise RootdiskError("cp: the sandbox's copy ends in the middle")
        kind, name, target, mode, time, size = _ENTRY.unpack(head)
        if kind not in (FILE, DIRECTORY, LINK) or max(name, target) > _NAME_MAX_BYTES:
            raise RootdiskError("cp: the sandbox sends no copy of files")
        words = program.read_exactly(name + target)
        entry = Entry(kind, words[:name], words[name:], mode & 0o7777, time, size if kind == FILE else 0)
        if len(words) < name + target or any(
            part in (b"", b".", b"..") for part in entry.name.split(b"/") if entry.name
        ):
            raise RootdiskError(f"cp: the sandbox sends the name {entry.name!r:.80}")
        yield entry


def _pieces(program: Program, size: int) -> Iterator[bytes]:
    while size:
        piece = program.read(min(size, _PIECE_BYTES))
        if not piece:
            raise RootdiskError("cp: the sandbox's copy ends in the middle")
        size -= len(piece)
        yield piece


def unpack(program: Program, source: bytes, target: bytes) -> None:
    """What `program` sends of its `source`, as `target`, or where that is a directory in it by the name it has."""
    name = os.path.basename(source.rstrip(b"/")) or b"."
    if os.path.isdir(target):
        root = target if name == b"." else os.path.join(target, name)
    elif target.endswith(b"/"):
        raise BadInput(f"cp: {os.fsdecode(target)} is no directory", "make it, or leave the last / away")
    else:
        root = target
    for entry in entries(program):
        if not entry.name:
            _unpack_root(program, entry, root)
        else:
            with _parent(root, entry.name) as (directory, name):
                _make(program, entry, directory, name)


def _unpack_root(program: Program, entry: Entry, root: bytes) -> None:
    if entry.kind == DIRECTORY and os.path.isdir(root):
        return
    parent = os.path.dirname(root) or b"."
    try:
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise BadInput(f"cp: {os.fsdecode(parent)}: {err.strerror}") from err
    try:
        _make(program, entry, directory, os.path.basename(root))
    finally:
        os.close(directory)


@contextlib.contextmanager
def _parent(root: bytes, name: bytes) -> Iterator[tuple[int, bytes]]:
    """The directory that `name` below `root` lies in, no link followed; and the name's last part."""
    *parts, last = name.split(b"/")
    # The root itself is the user's; it may be a link.
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        yield directory, last
    finally:
        os.close(directory)


def _make(program: Program, entry: Entry, directory: int, name: bytes) -> None:
    """One entry as `name` in a directory, in place of a file or link that is there."""
    if entry.kind == DIRECTORY:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700 | (entry.mode & 0o777), dir_fd=directory)
        return
    temporary = b".%s.%s" % (name[:200], os.urandom(6).hex().encode())
    try:
        if entry.kind == LINK:
            os.symlink(entry.target, temporary, dir_fd=directory)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
                for piece in _pieces(program, entry.size):
                    file.write(piece)
                file.flush()
                os.fchmod(file.fileno(), entry.mode & 0o777)
                os.utime(file.fileno(), (entry.time, entry.time))
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        raise


def pack(source: bytes, program: Program) -> None:
    """`source` and all below it to `program`; links as links. RootdiskError on what is no file, directory or link."""
    for path, name in _below(source):
        info = os.lstat(path)
        mode, time = stat.S_IMODE(info.st_mode), int(info.st_mtime)
        if stat.S_ISDIR(info.st_mode):
            program.write(Entry(DIRECTORY, name, b"", mode, time, 0).head())
        elif stat.S_ISLNK(info.st_mode):
            program.write(Entry(LINK, name, os.readlink(path), mode, time, 0).head())
        elif stat.S_ISREG(info.st_mode):
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                _send(file, size, Entry(FILE, name, b"", mode, time, size), program)
        else:
            raise BadInput(f"cp: {os.fsdecode(path)} is no file, directory or link")


def _below(source: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every path from `source` down, and its name relative to it; a directory before what is in it."""
    yield source, b""
    if os.path.islink(source) or not os.path.isdir(source):
        return
    for folder, directories, files in os.walk(source):
        directories.sort()
        for name in sorted((*directories, *files)):
            path = os.path.join(folder, name)
            yield path, os.path.relpath(path, source)


def _send(file: BinaryIO, size: int, entry: Entry, program: Program) -> None:
    program.write(entry.head())
    while size:
        piece = file.read(min(size, _PIECE_BYTES))
        if not piece:
            raise RootdiskError(f"cp: {os.fsdecode(entry.name)} became shorter while it was copied")
        program.write(piece)
        size -= len(piece)


_TAR_TYPES = {FILE: tarfile.REGTYPE, DIRECTORY: tarfile.DIRTYPE, LINK: tarfile.SYMTYPE}


def write_tar(program: Program, out: BinaryIO, source: str) -> None:
    """What `program` sends of its `source`, as a tar archive."""
    root = os.path.basename(source.rstrip("/")) or "."
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries(program):
            member = tarfile.TarInfo(f"{root}/{os.fsdecode(entry.name)}" if entry.name else root)
            member.type, member.mode, member.mtime = _TAR_TYPES[entry.kind], entry.mode, entry.time
            member.linkname, member.size = os.fsdecode(entry.target), entry.size
            archive.addfile(member)  # the header; a file's bytes and their padding follow
            for piece in _pieces(program, entry.size):
                archive.fileobj.write(piece)
            archive.fileobj.write(bytes(-entry.size % tarfile.BLOCKSIZE))
    out.flush()


def read_tar(source: BinaryIO, program: Program) -> None:
    """A tar archive's files to `program`."""
    try:
        with tarfile.open(fileobj=source, mode="r|*") as archive:
            for member in archive:
                name = os.fsencode(os.path.normpath(member.name))
                if name.startswith((b"/", b"..")):
                    raise BadInput(f"cp: the archive's name {member.name!r:.80} leads out of the target")
                _send_member(archive, member, b"" if name == b"." else name, program)
    except (tarfile.TarError, EOFError) as err:
        raise BadInput(f"cp: standard input is no tar archive: {err}") from err


def _send_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: bytes, program: Program) -> None:
    mode, time = member.mode & 0o7777, int(member.mtime)
    if member.isdir():
        program.write(Entry(DIRECTORY, name, b"", mode, time, 0).head())
    elif member.issym():
        program.write(Entry(LINK, name, os.fsencode(member.linkname), mode, time, 0).head())
    elif member.isreg():
        file = archive.extractfile(member)
        assert file is not None
        _send(file, member.size, Entry(FILE, name, b"", mode, time, member.size), program)  # type: ignore[arg-type]
    else:
        raise BadInput(f"cp: {member.name!r:.80} is no file, directory or symbolic link")
