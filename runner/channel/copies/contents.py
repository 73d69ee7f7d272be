"""The contents of single files in a sandbox, read and written without a file on this machine."""

from __future__ import annotations

import contextlib
import posixpath
import time

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.text import printable
from runner.channel.copies.command import Connect, report, start_pack, start_unpack
from runner.channel.copies.notes import Notes
from runner.channel.copies.places import guest_path
from runner.channel.copies.stream import FILE, NAMES, PIECE_BYTES, Entry
from runner.channel.program import Ended


def read_file(connect: Connect, path: str, max_bytes: int) -> bytes:
    """Return the content of a file in a sandbox. Links are followed.

    Raises:
        BadInput: It is not a file, or larger than `max_bytes`.
        RootdiskError: It cannot be read.
    """
    shown = printable(path)
    data = bytearray()
    notes = Notes()
    with contextlib.ExitStack() as stack:
        program, incoming = start_pack(connect, guest_path(path), True, stack)
        for entry in incoming:
            if entry.kind != FILE:
                raise BadInput(f"{shown} is {NAMES[entry.kind]}, not a file", "copy it with copy_out")
            if entry.size > max_bytes:
                raise _too_large(shown, max_bytes)
            for offset, piece in incoming.data:
                if offset + len(piece) > max_bytes:
                    raise _too_large(shown, max_bytes)
                data += bytes(offset - len(data)) + piece
            data += bytes(max(0, entry.size - len(data)))  # a hole at the end
            if not incoming.is_whole:
                notes.partial(path.encode(errors="replace"))
        program.finish()
    if not incoming.has_root and not program.status:
        notes.failure(path, "the sandbox has sent nothing")
    report(program, notes)
    return bytes(data)


def write_file(connect: Connect, path: str, data: bytes, mode: int) -> None:
    """Write a file in a sandbox; an existing one is replaced. Its directory must exist.

    Raises:
        BadInput: `path` does not name a file.
        RootdiskError: It cannot be written.
    """
    folder, name = posixpath.split(guest_path(path))
    if name in (b"", b".", b"..") or path.endswith("/"):
        raise BadInput(f"{printable(path)!r} does not name a file", "write a path such as /tmp/input.txt")
    if not 0 <= mode <= 0o7777:
        raise BadInput(f"mode {mode:o}", "0 to 0o7777")
    notes = Notes()
    with contextlib.ExitStack() as stack:
        program, outgoing = start_unpack(connect, folder.rstrip(b"/") + b"/", name, stack)
        try:
            pieces = (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))
            entry = Entry(FILE, b"", mode=mode, time_ns=time.time_ns(), size=len(data))
            outgoing.put_file(entry, [(0, len(data))] if data else [], pieces, ())
            outgoing.end()
            program.finish()
        except Ended:
            program.status = program.status or 1
    report(program, notes)


def _too_large(shown: str, max_bytes: int) -> RootdiskError:
    return BadInput(f"{shown} is larger than {max_bytes:,} bytes", "raise max_bytes, or copy it with copy_out")
