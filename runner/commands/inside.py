"""exec and cp: what runs beside a sandbox's program."""

from __future__ import annotations

import argparse
import os
import sys

from runner import frames, sandbox
from runner.commands.options import program_records
from runner.control import connect
from runner.errors import BadInput
from runner.records import pack
from runner.sandbox import State
from runner.store import Store

INIT = b"/.rootdisk/init"


def exec_command(options: argparse.Namespace) -> int:
    from runner.session import Session, raw_terminal

    if options.program[:1] == ["--"]:
        del options.program[0]
    if not options.program:
        raise BadInput("exec: no command", f"runner exec {options.name} COMMAND")
    state = _running(options.name)
    records = program_records(options)
    records += [("stdin", b"1")] if options.interactive else []
    records += [("tty", b"1")] if options.tty else []
    with connect(state) as sock:
        session = Session(sock)
        session.send(frames.EXEC, pack(records))
        stdin = 0 if options.interactive else None

        def forward(number: int) -> None:
            session.send(frames.SIGNAL, number.to_bytes(4, "little"))

        with raw_terminal(options.tty and options.interactive):
            return session.run(stdin=stdin, terminal=options.tty, on_signal=forward, ready=True)


def cp_command(options: argparse.Namespace) -> int:
    source, target = _place(options.source), _place(options.target)
    if (source[0] is None) == (target[0] is None):
        raise BadInput("cp copies between a sandbox and this machine", "write NAME:PATH on one side")
    if source[0] is not None:
        return _copy_out(_running(source[0]), source[1], target[1])
    assert target[0] is not None
    return _copy_in(_running(target[0]), source[1], target[1])


def _place(text: str) -> tuple[str | None, str]:
    """A sandbox's name, None for this machine, and the path there; as docker has it, ./a:b is a path here."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or name.startswith("."):
        return None, text
    if not path.startswith("/"):
        raise BadInput(f"cp: {text!r:.80}", "a path in a sandbox is absolute: NAME:/PATH")
    return name, path


def _running(name: str) -> State:
    state = sandbox.find(Store.open(), name)
    if not state.running:
        raise sandbox.not_running(state)
    return state


def _copy_out(state: State, path: str, target: str) -> int:
    from runner import transport

    with connect(state) as sock:
        program = transport.Program(sock, [INIT, b"pack", os.fsencode(path)])
        if target == "-":
            transport.write_tar(program, sys.stdout.buffer, path)
        else:
            transport.unpack(program, os.fsencode(path), os.fsencode(target))
        program.finish()
    return 0


def _copy_in(state: State, source: str, path: str) -> int:
    from runner import transport

    name = b"." if source == "-" else os.path.basename(os.fsencode(source))
    with connect(state) as sock:
        program = transport.Program(sock, [INIT, b"unpack", os.fsencode(path), name or b"."])
        if source == "-":
            transport.read_tar(sys.stdin.buffer, program)
        else:
            transport.pack(os.fsencode(source), program)
        program.finish()
    return 0
