"""Commands on sandboxes from outside: stop, kill, wait, rename, rm. Several sandboxes are acted on at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rootdisk.cli.rows import write_names, write_rows
from rootdisk.errors import BadInput, Busy, RootdiskError
from rootdisk.ids import parse_signal
from rootdisk.text import error_text, printable
from runner.channel import messages
from runner.sandbox import directory, orders
from runner.sandbox.directory import Sandbox, State, Unreadable
from runner.store.store import Store

STOPPED_S = 60.0  # in addition to the time for the program: the guest writes everything back, the keeper exits
SandboxState = TypeVar("SandboxState", State, State | Unreadable)


def stop_command(options: argparse.Namespace) -> int:
    """Ask the programs of sandboxes to end, all at once, and wait until the sandboxes have ended."""
    sandboxes = _find(options.name)
    failed = stop(sandboxes, options.time)
    return _done(options, sandboxes, failed)


def stop(sandboxes: Sequence[State], seconds: int) -> dict[str, RootdiskError]:
    """Stop all of `sandboxes` at once; return the errors by name."""
    if seconds < 0:
        raise BadInput(f"--time {seconds}", "0 or more seconds")
    seconds = min(seconds, 0xFFFF_FFFF)  # this is for ever already

    def order(state: State) -> None:
        """Give a running sandbox the order to stop."""
        if state.running:
            orders.give(state, messages.frame_number(messages.STOP, seconds))

    return _on_all(sandboxes, order, lambda state: directory.wait_end(state, seconds + STOPPED_S))


def kill_command(options: argparse.Namespace) -> int:
    """End sandboxes at once, or send their programs a signal."""
    number = _signal(options.signal) if options.signal else None
    sandboxes = _find(options.name)
    for state in sandboxes:
        if not state.running:
            raise directory.not_running(state)
    if number is None or number == signal.SIGKILL:
        failed = _end(sandboxes)
    else:
        order = messages.frame_number(messages.SIGNAL, number)
        failed = _on_all(sandboxes, lambda state: orders.give(state, order), lambda state: None, forgive=False)
    return _done(options, sandboxes, failed)


def wait_command(options: argparse.Namespace) -> int:
    """Wait until sandboxes end; print the exit status of each."""
    sandboxes = _find(options.name)
    with contextlib.ExitStack() as stack:
        # Connect to all first: a sandbox that is removed when it ends could not be found later.
        sockets = [_watch_end(state, stack) for state in sandboxes]
        rows = []
        for state, sock in zip(sandboxes, sockets, strict=True):
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
    write_names([new], as_json=options.json)
    return 0


def rm_command(options: argparse.Namespace) -> int:
    """Remove sandboxes that have ended; with --force, end running ones first."""
    store = Store.open()
    sandboxes = [directory.find_any(store, name) for name in dict.fromkeys(options.name)]
    if not options.force:
        for sandbox in sandboxes:
            directory.check_removable(sandbox, force=False)
            if sandbox.running:
                name = printable(sandbox.name)
                gentler = "" if isinstance(sandbox, Unreadable) else f"runner stop {name}, or "
                raise BadInput(f"sandbox {name} runs", f"{gentler}runner rm --force {name}")
    failed = _end([sandbox for sandbox in sandboxes if sandbox.running])
    for sandbox in sandboxes:
        if sandbox.name not in failed and os.path.lexists(sandbox.folder):
            try:
                directory.remove(sandbox)
            except RootdiskError as err:
                failed[sandbox.name] = err
    return _done(options, sandboxes, failed)


def _find(names: list[str]) -> list[State]:
    """Find all of them, before anything is done to one."""
    store = Store.open()
    return [directory.find(store, name) for name in dict.fromkeys(names)]


def _done(
    options: argparse.Namespace, sandboxes: Sequence[State | Unreadable], failed: dict[str, RootdiskError]
) -> int:
    """Print the names of the sandboxes without an error. Raise the last error, after printing the others."""
    write_names((sandbox.name for sandbox in sandboxes if sandbox.name not in failed), as_json=options.json)
    errors = list(failed.values())
    for err in errors[:-1]:
        print(f"runner: {error_text(str(err))}", file=sys.stderr)
    if errors:
        raise errors[-1]
    return 0


def _on_all(
    sandboxes: Sequence[SandboxState],
    order: Callable[[SandboxState], None],
    wait: Callable[[SandboxState], None],
    *,
    forgive: bool = True,
) -> dict[str, RootdiskError]:
    """Give all an order, then wait for each; return the errors by name.

    With `forgive`, a sandbox may end before it gets its order.
    """
    failed: dict[str, RootdiskError] = {}
    for step in (order, wait):
        for sandbox in sandboxes:
            if sandbox.name in failed:
                continue
            try:
                with _may_have_ended(sandbox) if forgive else contextlib.nullcontext():
                    step(sandbox)
            except RootdiskError as err:
                failed[sandbox.name] = err
    return failed


def _end(sandboxes: Sequence[SandboxState]) -> dict[str, RootdiskError]:
    """End all of `sandboxes` at once: by an order, or by ending their keepers if those do not carry it out."""
    running = [sandbox for sandbox in sandboxes if sandbox.running]

    def order(sandbox: SandboxState) -> None:
        """Give the order to end; a keeper that does not answer is killed later."""
        with contextlib.suppress(Busy):
            orders.give(sandbox, messages.frame(messages.KILL))

    return _on_all(running, order, orders.end)


@contextlib.contextmanager
def _may_have_ended(sandbox: State | Unreadable) -> Iterator[None]:
    """Ignore the failure of an order if the sandbox has just ended by itself."""
    try:
        yield
    except BadInput:
        if directory.is_running(sandbox):
            raise


def _watch_end(state: State, stack: contextlib.ExitStack) -> socket.socket | None:
    """Open a connection on which the keeper reports the end of the sandbox; None if it has ended."""
    if not state.running:
        return None
    with _may_have_ended(state):
        sock = stack.enter_context(orders.connect(state))
        with contextlib.suppress(ConnectionError):
            sock.sendall(messages.frame(messages.WAIT))
        return sock
    return None


def _status(state: State, sock: socket.socket | None) -> int:
    """Wait until a sandbox has ended and return its exit status."""
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
    try:
        return parse_signal(text)
    except BadInput as err:
        raise BadInput(f"--signal {text!r:.40}", err.hint) from err
