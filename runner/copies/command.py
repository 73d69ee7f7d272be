"""`runner cp`: from its two paths to the copy."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from runner.copies import archive, reader, writer
from runner.copies.notes import Notes
from runner.copies.places import find_place, guest_name, guest_path, host_name
from runner.copies.stream import Incoming
from runner.errors import RootdiskError
from runner.text import one_line
from runner.transport import Ended, Program

_INIT = b"/.rootdisk/init"
Connect = Callable[[], socket.socket]  # to the sandbox's keeper


def copy_out(connect: Connect, source: str, target: str) -> int:
    """`source` in a sandbox to `target` here, or for `-` to standard output as a tar archive."""
    path = guest_path(source)
    name = guest_name(path)
    notes = Notes()
    place = None if target == "-" else find_place(os.fsencode(target), name)
    try:
        with connect() as sock:
            program = Program(sock, [_INIT, b"pack", path])
            incoming = Incoming(program)
            if place is None:
                archive.write_tar(incoming, sys.stdout.buffer, name)
            else:
                writer.write_files(incoming, place, notes)
            program.finish()
    finally:
        if place is not None:
            os.close(place.directory)
    return _report(program, notes)


def copy_in(connect: Connect, source: str, target: str) -> int:
    """`source` here, or for `-` a tar archive on standard input, to `target` in a sandbox."""
    here = os.fsencode(source)
    name = b"." if source == "-" else host_name(here)
    with connect() as sock:
        program = Program(sock, [_INIT, b"unpack", guest_path(target), name])
        try:
            if source == "-":
                archive.read_tar(sys.stdin.buffer, program)
            else:
                reader.pack(here, program)
            program.finish()
        except Ended:
            program.status = program.status or 1
    return _report(program, Notes())


def _report(program: Program, notes: Notes) -> int:
    """Say what is to be said of single files; RootdiskError if not everything was copied."""
    failed = notes.failed or bool(program.status)
    lines = program.errors()
    for line in lines:
        notes.remark(line)
    if program.status and not lines:
        notes.remark(f"status {program.status} in the sandbox")
    if failed and notes.count == 1:
        raise RootdiskError(f"cp: {notes.lines[0]}")
    for text in notes.lines:
        print(f"runner: cp: {one_line(text)}", file=sys.stderr)
    if failed:
        raise RootdiskError("cp: not everything was copied" + _others(notes))
    return 0


def _others(notes: Notes) -> str:
    others = notes.count - len(notes.lines)
    return f"; {others} more such lines" if others else ""
