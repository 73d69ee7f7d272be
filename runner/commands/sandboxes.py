"""Commands on sandboxes from outside: ps, logs, stop, kill, wait, rm."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rootdisk.errors import BadInput, Busy
from rootdisk.text import one_line, printable
from runner.channel import messages
from runner.commands.options import write_json
from runner.sandbox import directory, orders
from runner.sandbox.directory import State, Unreadable
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.sandbox.logs import Reader

FOLLOW_S = 0.1
STOPPED_S = 60.0  # beyond what the program has: for its guest to write everything back, and its keeper to end


def ps_command(options: argparse.Namespace) -> int:
    rows = [
        found
        for found in directory.all_of(Store.open())
        if (found.running or options.all) and (isinstance(found, Unreadable) or not found.name.startswith("."))
    ]
    if options.json:
        write_json([row.to_json() for row in rows])
        return 0
    print(f"{'NAME':24} {'ARTIFACT':40} {'AGE':>6}  {'STATE':12} PORTS")
    for row in rows:
        name = printable(row.name)
        if isinstance(row, Unreadable):
            print(f"{name:24} {'':40} {'':>6}  {'unreadable':12} {one_line(row.reason)}")
            continue
        ports = ", ".join(f"{address}:{host}->{guest}/{kind}" for kind, address, host, guest in row.spec.forwards)
        age = _age(time.time() - row.created)
        print(f"{name:24} {printable(row.spec.reference):40} {age:>6}  {row.text:12} {printable(ports)}".rstrip())
    return 0


def _age(seconds: float) -> str:
    for name, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds / length)} {name}"
    return f"{int(seconds)} s"


def logs_command(options: argparse.Namespace) -> int:
    from runner.sandbox.logs import Reader

    state = directory.find(Store.open(), options.name)
    path = state.folder / ("console.log" if options.console else "output.log")
    if not path.exists():
        raise BadInput(
            f"sandbox {options.name} keeps no output: it runs in the foreground",
            "--console shows its console; boot it with --detach",
        )
    reader = Reader(path)
    while True:
        running = options.follow and directory.is_running(state)
        _show(reader, framed=not options.console)
        if not running:
            return 0
        time.sleep(FOLLOW_S)


def _show(reader: Reader, *, framed: bool) -> None:
    pieces = reader.frames() if framed else ((messages.STDOUT, data) for data in reader.data())
    for kind, data in pieces:
        stream = sys.stderr if kind == messages.STDERR else sys.stdout
        stream.buffer.write(data)
        stream.buffer.flush()


def stop_command(options: argparse.Namespace) -> int:
    if options.time < 0:
        raise BadInput(f"--time {options.time}", "0 or more seconds")
    seconds = min(options.time, 0xFFFF_FFFF)  # more is for ever too
    for state in _found(options.name):
        if state.running:
            with _may_have_ended(state):
                orders.give(state, messages.frame_number(messages.STOP, seconds))
            directory.wait_end(state, seconds + STOPPED_S)
        print(state.spec.name)
    return 0


@contextlib.contextmanager
def _may_have_ended(found: State | Unreadable) -> Iterator[None]:
    """An order that comes too late, as the sandbox ends by itself just now, is none that fails."""
    try:
        yield
    except BadInput:
        if directory.is_running(found):
            raise


def kill_command(options: argparse.Namespace) -> int:
    number = _signal(options.signal) if options.signal else None
    for state in _found(options.name):
        if not state.running:
            raise directory.not_running(state)
        if number is None or number == signal.SIGKILL:
            orders.end(state)
        else:
            orders.give(state, messages.frame_number(messages.SIGNAL, number))
        print(state.spec.name)
    return 0


def wait_command(options: argparse.Namespace) -> int:
    for state in _found(options.name):
        print(_wait(state))
    return 0


def _wait(state: State) -> int:
    """The exit status of a sandbox, when it has ended."""
    if state.running:
        decoder = messages.Decoder()
        with _may_have_ended(state), orders.connect(state) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(messages.frame(messages.WAIT))
            while data := sock.recv(4096):
                for kind, _, payload in decoder.feed(data):
                    if kind == messages.EXIT:
                        return messages.number(payload)
                    if kind == messages.ERROR:
                        raise Busy(payload.decode(errors="replace"))
        directory.wait_end(state)
        state = directory.find(Store.open(), state.spec.name)  # it ended in between
    if state.status is None:
        raise BadInput(f"sandbox {state.spec.name} was cut off", "its keeper was killed: it has no exit status")
    return state.status


def rm_command(options: argparse.Namespace) -> int:
    store = Store.open()
    for found in [directory.find_any(store, name) for name in options.name]:
        name = printable(found.name)
        if found.running:
            if not options.force:
                other = "" if isinstance(found, Unreadable) else f"runner stop {name}, or "
                raise BadInput(f"sandbox {name} runs", f"{other}runner rm --force {name}")
            with _may_have_ended(found):
                orders.end(found)
        if os.path.lexists(found.folder):
            directory.remove(found)
        print(name)
    return 0


def _found(names: list[str]) -> list[State]:
    """All of them, before anything is done to one."""
    store = Store.open()
    return [directory.find(store, name) for name in names]


def _signal(text: str) -> int:
    name = text.upper().removeprefix("SIG")
    if re.fullmatch("[0-9]{1,2}", name) and 0 < int(name) < signal.NSIG:
        return int(name)
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError as err:
        raise BadInput(f"--signal {text!r:.40}", "write HUP, USR1, 15 or the like") from err
