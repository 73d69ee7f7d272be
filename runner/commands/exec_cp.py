"""The commands exec and cp: work in a sandbox beside its main program."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator

from rootdisk.errors import BadInput
from rootdisk.records import pack
from rootdisk.system import process
from rootdisk.text import printable
from runner.channel import messages
from runner.options.programs import program_records
from runner.sandbox import liveness, lookup
from runner.sandbox.orders import connect
from runner.sandbox.state import State
from runner.store.store import Store


def exec_command(options: argparse.Namespace) -> int:
    """Run a command in a running sandbox; return its exit status."""
    from runner.channel.session import Session, raw_terminal

    if options.program[:1] == ["--"]:
        del options.program[0]
    if not options.program:
        raise BadInput("exec: no command", f"runner exec {options.name} COMMAND")
    state = _running(options.name)
    records = program_records(options)
    is_interactive = options.interactive and not options.detach
    records += [("stdin", b"1")] if is_interactive else []
    records += [("tty", b"1")] if options.tty else []
    request = pack(records)
    messages.check_request(request)
    with connect(state) as sock:
        session = Session(sock)
        if options.detach:
            session.send(messages.EXEC_DETACHED, request)
            return session.run(stdin=None, terminal=False, on_signal=session.send_signal, ready=True)
        session.send(messages.EXEC, request)
        stdin = 0 if is_interactive else None
        with raw_terminal(options.tty and is_interactive):
            return session.run(stdin=stdin, terminal=options.tty, on_signal=session.send_signal, ready=True)


def cp_command(options: argparse.Namespace) -> int:
    """Copy files into or out of a sandbox."""
    from runner.channel.copies import command

    source, target = _place(options.source), _place(options.target)
    if (source[0] is None) == (target[0] is None):
        raise BadInput("cp copies between a sandbox and this machine", "write NAME:PATH on one side")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        connect = _connection(source[0] or target[0] or "", stack)
        if source[0] is not None:
            return command.copy_out(connect, source[1], target[1], follow=options.follow_link)
        return command.copy_in(connect, source[1], target[1], follow=options.follow_link)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: at once, and half-written files are removed."""

    def end(number: int, _: object) -> None:
        """End this process with the status of a signal."""
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, end) for one in process.heard(signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _connection(name: str, stack: contextlib.ExitStack) -> Callable[[], socket.socket]:
    """Return a function that connects to the keeper of a sandbox. A stopped sandbox is started at the first call."""
    store = Store.open()
    state = lookup.find(store, name)
    is_started = state.running

    def connected() -> socket.socket:
        """Connect to the keeper, which is started first if need be."""
        nonlocal is_started
        if not is_started:
            from runner.sandbox import visit

            if sys.stderr.isatty():
                print(f"runner: booting sandbox {printable(name)} for the copy", file=sys.stderr, flush=True)
            process.protect_secrets()
            stack.enter_context(visit.started(store, state))
            is_started = True
        return connect(state)

    return connected


def _place(text: str) -> tuple[str | None, str]:
    """Return a sandbox's name (None for this machine) and the path there. As in docker, ./a:b is a path on this machine."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or name.startswith("."):
        return None, text
    if not path:
        raise BadInput(f"cp: {text!r:.80}", "a path in a sandbox is missing: NAME:/PATH")
    return name, path


def _running(name: str) -> State:
    state = lookup.find(Store.open(), name)
    if not state.running:
        raise liveness.not_running(state)
    return state
