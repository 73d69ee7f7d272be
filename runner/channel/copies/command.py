"""`runner cp`: from its two paths to the copy."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.text import one_line
from runner.channel.copies import archive, reader, writer
from runner.channel.copies.notes import Notes
from runner.channel.copies.places import CONTENTS, find_place, guest_name, guest_path, host_name, host_path
from runner.channel.copies.stream import HELLO, Incoming, Outgoing
from runner.channel.program import Ended, Program

_INIT = b"/.rootdisk/init"
_UNKNOWN_STATUS = 125  # of an init that does not know what it is asked for
_HELLO_S = 15.0  # in which an init that knows version 2 says so; what says nothing is spoken to in version 1
_ARCHIVE = b""  # in place of a name: the target is a directory, and entries bring their names
Connect = Callable[[], socket.socket]  # to the sandbox's keeper
Tell = Callable[[str], None]


def show(remark: str) -> None:
    """Print a remark about a single file."""
    print(f"runner: cp: {one_line(remark)}", file=sys.stderr)


def copy_out(connect: Connect, source: str, target: str, *, follow: bool = False, tell: Tell = show) -> int:
    """Copy `source` in a sandbox to `target` here, or for `-` to standard output as a tar archive. `tell` gets remarks."""
    path = guest_path(source)
    name = guest_name(path)
    if not target:
        raise BadInput("cp: TARGET is empty", "write . for the working directory")
    notes = Notes()
    with contextlib.ExitStack() as stack:
        place = None if target == "-" else find_place(host_path(target), name)
        if place is not None:
            stack.callback(os.close, place.directory)
        program, incoming = start_pack(connect, path, follow, stack)
        if place is None:
            archive.write_tar(incoming, sys.stdout.buffer, name, notes)
        else:
            writer.write_files(incoming, place, notes)
        program.finish()
    if not incoming.has_root and not program.status:
        notes.failure(path, "the sandbox has sent nothing")
    return report(program, notes, tell)


def start_pack(connect: Connect, path: bytes, follow: bool, stack: ExitStack) -> tuple[Program, Incoming]:
    """Start the init's program that sends `path`; return it and its stream, from the first entry on."""
    options = [b"-L"] if follow else []
    program = Program(stack.enter_context(connect()), [_INIT, b"pack2", *options, path])
    incoming = Incoming(program)
    if incoming.is_empty and program.status == _UNKNOWN_STATUS:  # an older init
        if follow:
            raise RootdiskError("cp: the sandbox's older init does not know -L", "build its artifact again")
        program = Program(stack.enter_context(connect()), [_INIT, b"pack", path])
        incoming = Incoming(program)
    return program, incoming


def copy_in(connect: Connect, source: str, target: str, *, follow: bool = False, tell: Tell = show) -> int:
    """Copy `source` here, or for `-` a tar archive on standard input, to `target` in a sandbox. `tell` gets remarks."""
    if not source:
        raise BadInput("cp: SOURCE is empty", "write . for the working directory")
    here = host_path(source)
    name = _ARCHIVE if source == "-" else host_name(here)
    notes = Notes()
    if source != "-":
        os.stat(here, follow_symlinks=follow)  # the sandbox is left alone if there is nothing to copy
    with contextlib.ExitStack() as stack:
        program, outgoing = start_unpack(connect, guest_path(target), name, stack)
        try:
            if source == "-":
                archive.read_tar(sys.stdin.buffer, outgoing, notes)
            else:
                reader.send_files(here, outgoing, notes, follow=follow)
            outgoing.end()
            program.finish()
        except Ended:
            program.status = program.status or 1
    return report(program, notes, tell)


def start_unpack(connect: Connect, path: bytes, name: bytes, stack: ExitStack) -> tuple[Program, Outgoing]:
    """Start the init's program that writes `name` at `path`; return it and its stream."""
    program = Program(stack.enter_context(connect()), [_INIT, b"unpack2", path, name])
    if program.answers(_HELLO_S):
        hello = program.read_exactly(len(HELLO))
        if hello == HELLO:
            return program, Outgoing(program, 2)
        if hello or program.status != _UNKNOWN_STATUS:
            raise RootdiskError("cp: the sandbox's init takes no copies")
    program = Program(stack.enter_context(connect()), [_INIT, b"unpack", path, name or CONTENTS])
    return program, Outgoing(program, 1)


def report(program: Program, notes: Notes, tell: Tell = show) -> int:
    """Print the remarks about single files; RootdiskError if not everything was copied."""
    failed = notes.failed or bool(program.status)
    notes.hear(program.errors())
    if program.status and not notes.count:
        notes.remark(f"status {program.status} in the sandbox")
    if failed and notes.count == 1:
        raise RootdiskError(f"cp: {notes.lines[0]}")
    for text in notes.lines:
        tell(text)
    if failed:
        raise RootdiskError("cp: not everything was copied" + _others(program, notes))
    return 0


def _others(program: Program, notes: Notes) -> str:
    others = notes.count - len(notes.lines)
    return f"; {others} more such lines" if others and not program.errors_are_cut else "; many more" if others else ""
