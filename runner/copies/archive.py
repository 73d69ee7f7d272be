"""A copy as a tar archive, on standard output or from standard input."""

from __future__ import annotations

import os
import tarfile
from typing import BinaryIO

from runner.copies.reader import send_file
from runner.copies.stream import DIRECTORY, FILE, LINK, Entry, Incoming
from runner.errors import BadInput
from runner.text import printable
from runner.transport import Program

_TAR_TYPES = {FILE: tarfile.REGTYPE, DIRECTORY: tarfile.DIRTYPE, LINK: tarfile.SYMTYPE}


def write_tar(incoming: Incoming, out: BinaryIO, root: bytes) -> None:
    """All of `incoming` as a tar archive, in a directory `root`."""
    written = 0
    for entry in incoming:
        name = root + b"/" + entry.name if entry.name else root
        member = tarfile.TarInfo(os.fsdecode(name))
        # Owners stay behind, so set-user-ID must too: the program would be of whoever extracts it, or root's.
        member.type, member.mode = _TAR_TYPES[entry.kind], entry.mode & (0o1777 if entry.kind == DIRECTORY else 0o777)
        member.linkname, member.size, member.mtime = os.fsdecode(entry.target), entry.size, entry.time_ns // 10**9
        header = member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        out.write(header)
        for piece in incoming.data:
            out.write(piece)
        padding = -entry.size % tarfile.BLOCKSIZE
        out.write(bytes(padding))
        written += len(header) + entry.size + padding
    out.write(bytes(-(written + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE))
    out.flush()


def read_tar(source: BinaryIO, program: Program) -> None:
    """A tar archive's files to `program`."""
    try:
        with tarfile.open(fileobj=source, mode="r|*") as archive:
            for member in archive:
                name = os.fsencode(os.path.normpath(member.name))
                if name.startswith((b"/", b"..")):
                    raise BadInput(f"cp: the archive's name {printable(member.name)} leads out of the target")
                _send_member(archive, member, b"" if name == b"." else name, program)
    except (tarfile.TarError, EOFError) as err:
        raise BadInput(f"cp: standard input is no tar archive: {printable(err)}") from err


def _send_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: bytes, program: Program) -> None:
    mode, time = member.mode & 0o7777, int(member.mtime) * 10**9
    if member.isdir():
        program.write(Entry(DIRECTORY, name, b"", mode, time, 0).head())
    elif member.issym():
        program.write(Entry(LINK, name, os.fsencode(member.linkname), mode, time, 0).head())
    elif member.isreg():
        file = archive.extractfile(member)
        assert file is not None
        send_file(file, member.size, Entry(FILE, name, b"", mode, time, member.size), program)  # type: ignore[arg-type]
    else:
        raise BadInput(f"cp: {printable(member.name)} is no file, directory or symbolic link")
