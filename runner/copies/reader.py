"""Files of this machine, to a guest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from runner.copies.stream import DIRECTORY, FILE, LINK, PIECE_BYTES, Entry
from runner.errors import BadInput, RootdiskError
from runner.transport import Program


def pack(source: bytes, program: Program) -> None:
    """`source` and all below it to `program`; links as links. RootdiskError on what is no file, directory or link."""
    for path, name in _below(source):
        info = os.lstat(path)
        mode, time = stat.S_IMODE(info.st_mode), info.st_mtime_ns
        if stat.S_ISDIR(info.st_mode):
            program.write(Entry(DIRECTORY, name, b"", mode, time, 0).head())
        elif stat.S_ISLNK(info.st_mode):
            program.write(Entry(LINK, name, os.readlink(path), mode, time, 0).head())
        elif stat.S_ISREG(info.st_mode):
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                send_file(file, size, Entry(FILE, name, b"", mode, time, size), program)
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


def send_file(file: BinaryIO, size: int, entry: Entry, program: Program) -> None:
    program.write(entry.head())
    while size:
        piece = file.read(min(size, PIECE_BYTES))
        if not piece:
            raise RootdiskError(f"cp: {os.fsdecode(entry.name)} became shorter while it was copied")
        program.write(piece)
        size -= len(piece)
