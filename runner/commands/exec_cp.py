"""exec and cp: what runs beside a sandbox's program."""

from __future__ import annotations

import argparse

from rootdisk.errors import BadInput
from rootdisk.records import pack
from runner.channel import messages
from runner.commands.options import program_records
from runner.sandbox import directory
from runner.sandbox.directory import State
from runner.sandbox.orders import connect
from runner.store.store import Store


def exec_command(options: argparse.Namespace) -> int:
    from runner.channel.session import Session, raw_terminal

    if options.program[:1] == ["--"]:
        del options.program[0]
    if not options.program:
        raise BadInput("exec: no command", f"runner exec {options.name} COMMAND")
    state = _running(options.name)
    records = program_records(options)
    records += [("stdin", b"1")] if options.interactive else []
    records += [("tty", b"1")] if options.tty else []
    request = pack(records)
    if len(request) > messages.REQUEST_MAX:
        raise BadInput(
            f"exec: command and variables take {len(request):,} bytes, and {messages.REQUEST_MAX:,} are the most",
            "send long data with exec -i, or copy it with runner cp",
        )
    with connect(state) as sock:
        session = Session(sock)
        session.send(messages.EXEC, request)
        stdin = 0 if options.interactive else None
        with raw_terminal(options.tty and options.interactive):
            return session.run(stdin=stdin, terminal=options.tty, on_signal=session.send_signal, ready=True)


def cp_command(options: argparse.Namespace) -> int:
    from runner.channel.copies import command

    source, target = _place(options.source), _place(options.target)
    if source[0] is not None and target[0] is None:
        state = _running(source[0])
        return command.copy_out(lambda: connect(state), source[1], target[1], follow=options.follow_link)
    if source[0] is None and target[0] is not None:
        state = _running(target[0])
        return command.copy_in(lambda: connect(state), source[1], target[1], follow=options.follow_link)
    raise BadInput("cp copies between a sandbox and this machine", "write NAME:PATH on one side")


def _place(text: str) -> tuple[str | None, str]:
    """A sandbox's name, None for this machine, and the path there; as docker has it, ./a:b is a path here."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or name.startswith("."):
        return None, text
    if not path:
        raise BadInput(f"cp: {text!r:.80}", "a path in a sandbox is missing: NAME:/PATH")
    return name, path


def _running(name: str) -> State:
    state = directory.find(Store.open(), name)
    if not state.running:
        raise directory.not_running(state)
    return state
