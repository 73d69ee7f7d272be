"""Commands on sandboxes from outside: stop, kill, wait, rename, rm. Several sandboxes are acted on at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rootdisk.cli.rows import write_rows
from rootdisk.errors import BadInput, Busy, RootdiskError
from rootdisk.text import error_text, printable
from runner.channel import messages
from runner.sandbox import directory, orders
from runner.sandbox.directory import Sandbox, State, Unreadable
from runner.store.store import Store

STOPPED_S = 60.0  # beyond what the program has: for its guest to write everything back, and its keeper to end
Found = TypeVar("Found", State, State | Unreadable)


def stop_command(options: argparse.Namespace) -> int:
    """Ask the programs of sandboxes to end, all at once, and wait until the sandboxes have ended."""
    found = _found(options.name)
    failed = stop(found, options.time)
    return _done(options, found, failed)


def stop(found: Sequence[State], seconds: int) -> dict[str, RootdiskError]:
    """Stop all of `found` at once; what went wrong, by name."""
    if seconds < 0:
        raise BadInput(f"--time {seconds}", "0 or more seconds")
    seconds = min(seconds, 0xFFFF_FFFF)  # more is for ever too

    def order(state: State) -> None:
        if state.running:
            orders.give(state, messages.frame_number(messages.STOP, seconds))

    return _on_all(found, order, lambda state: directory.wait_end(state, seconds + STOPPED_S))


def kill_command(options: argparse.Namespace) -> int:
    """End sandboxes at once, or send their programs a signal."""
    number = _signal(options.signal) if options.signal else None
    found = _found(options.name)
    for state in found:
        if not state.running:
            raise directory.not_running(state)
    if number is None or number == signal.SIGKILL:
        failed = _end(found)
    else:
        order = messages.frame_number(messages.SIGNAL, number)
        failed = _on_all(found, lambda state: orders.give(state, order), lambda state: None, forgive=False)
    return _done(options, found, failed)


def wait_command(options: argparse.Namespace) -> int:
    """Wait until sandboxes end; print the exit status of each."""
    found = _found(options.name)
    with contextlib.ExitStack() as stack:
        # All at once: one that is removed when it ends would not be found after the one before it.
        sockets = [_waiting(state, stack) for state in found]
        rows = []
        for state, sock in zip(found, sockets, strict=True):
            rows.append({"name": state.name, "status": _status(state, sock)})
            if not options.json:
                print(rows[-1]["status"], flush=True)
    if options.json:
        write_rows(rows)
    return 0


def rename_command(options: argparse.Namespace) -> int:
    """Give a sandbox another name."""
    from runner.commands.options import sandbox_name  # with much that only boot needs

    new = sandbox_name(options.new, "NEW")
    Sandbox.rename(directory.find(Store.open(), options.name), new)
    write_rows([{"name": new}]) if options.json else print(new)
    return 0


def rm_command(options: argparse.Namespace) -> int:
    """Remove sandboxes that have ended; with --force, end running ones first."""
    store = Store.open()
    found = [directory.find_any(store, name) for name in dict.fromkeys(options.name)]
    if not options.force:
        for one in found:
            directory.check_removable(one, force=False)
            if one.running:
                name = printable(one.name)
                other = "" if isinstance(one, Unreadable) else f"runner stop {name}, or "
                raise BadInput(f"sandbox {name} runs", f"{other}runner rm --force {name}")
    failed = _end([one for one in found if one.running])
    for one in found:
        if one.name not in failed and os.path.lexists(one.folder):
            try:
                directory.remove(one)
            except RootdiskError as err:
                failed[one.name] = err
    return _done(options, found, failed)


def _found(names: list[str]) -> list[State]:
    """All of them, before anything is done to one."""
    store = Store.open()
    return [directory.find(store, name) for name in dict.fromkeys(names)]


def _done(options: argparse.Namespace, found: Sequence[State | Unreadable], failed: dict[str, RootdiskError]) -> int:
    """Print the names of those that it was done to. The first error is raised, the others are printed before it."""
    names = [one.name for one in found if one.name not in failed]
    if options.json:
        write_rows([{"name": name} for name in names])
    else:
        for name in names:
            print(printable(name))
    *others, last = failed.values() if failed else (None,)
    for err in others:
        print(f"runner: {error_text(str(err))}", file=sys.stderr)
    if last is not None:
        raise last
    return 0


def _on_all(
    found: Sequence[Found], order: Callable[[Found], None], wait: Callable[[Found], None], *, forgive: bool = True
) -> dict[str, RootdiskError]:
    """Give all an order, then wait for each; what went wrong, by name. One that ends before its order is none with `forgive`."""
    failed: dict[str, RootdiskError] = {}
    for step in (order, wait):
        for one in found:
            if one.name in failed:
                continue
            try:
                with _may_have_ended(one) if forgive else contextlib.nullcontext():
                    step(one)
            except RootdiskError as err:
                failed[one.name] = err
    return failed


def _end(found: Sequence[Found]) -> dict[str, RootdiskError]:
    """End all of `found` at once: by an order, or with their keepers if those do not carry it out."""
    running = [one for one in found if one.running]

    def order(one: Found) -> None:
        with contextlib.suppress(Busy):
            orders.give(one, messages.frame(messages.KILL))

    return _on_all(running, order, orders.end)


@contextlib.contextmanager
def _may_have_ended(found: State | Unreadable) -> Iterator[None]:
    """Ignore the failure of an order if the sandbox has just ended by itself."""
    try:
        yield
    except BadInput:
        if directory.is_running(found):
            raise


def _waiting(state: State, stack: contextlib.ExitStack) -> socket.socket | None:
    """A connection that says how the sandbox ends; None if it has ended."""
    if not state.running:
        return None
    with _may_have_ended(state):
        sock = stack.enter_context(orders.connect(state))
        with contextlib.suppress(ConnectionError):
            sock.sendall(messages.frame(messages.WAIT))
        return sock
    return None


def _status(state: State, sock: socket.socket | None) -> int:
    """The exit status of a sandbox, when it has ended."""
    if sock is not None:
        decoder = messages.Decoder()
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(4096):
                for kind, _, payload in decoder.feed(data):
                    if kind == messages.EXIT:
                        return messages.number(payload)
                    if kind == messages.ERROR:
                        raise Busy(payload.decode(errors="replace"))
    if state.running:
        directory.wait_end(state)
        state = directory.find(Store.open(), state.spec.name)  # it ended in between
    if state.status is None:
        raise BadInput(f"sandbox {state.spec.name} was cut off", "its keeper was killed: it has no exit status")
    return state.status


def _signal(text: str) -> int:
    name = text.upper().removeprefix("SIG")
    if re.fullmatch("[0-9]{1,2}", name) and 0 < int(name) < signal.NSIG:
        return int(name)
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError as err:
        raise BadInput(f"--signal {text!r:.40}", "write HUP, USR1, 15 or the like") from err
