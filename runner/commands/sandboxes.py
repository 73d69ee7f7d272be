"""Commands on sandboxes from outside: stop, kill, wait, rename, trim, rm. Several sandboxes are acted on at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from rootdisk.cli.rows import write_names, write_rows
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.parsing.ids import parse_signal
from rootdisk.text import error_text, printable
from runner.sandbox import directory, lookup, orders
from runner.sandbox.state import State, Unreadable
from runner.store.store import Store


def stop_command(options: argparse.Namespace) -> int:
    """Ask the programs of sandboxes to end, all at once, and wait until the sandboxes have ended."""
    if not options.all:
        if not options.name:
            raise BadInput("stop: no NAME", "name a sandbox, or use --all")
        sandboxes = _find(options.name)
        return _done(options, sandboxes, orders.stop_all(sandboxes, options.time))
    if options.name:
        raise BadInput("--all with a NAME", "use one of them")
    sandboxes = [state for state in lookup.states(Store.open()) if state.running and state.spec.restart != "no"]
    return _done(options, sandboxes, orders.stop_by_host(sandboxes))


def kill_command(options: argparse.Namespace) -> int:
    """End sandboxes at once, or send their programs a signal."""
    number = _signal(options.signal) if options.signal else None
    sandboxes = _find(options.name)
    failed = orders.kill_all(sandboxes, number)
    return _done(options, sandboxes, failed)


def wait_command(options: argparse.Namespace) -> int:
    """Wait until sandboxes end; print the exit status of each."""
    store, sandboxes = Store.open(), _find(options.name)
    with contextlib.ExitStack() as stack:
        # Connect to all first: a sandbox that is removed when it ends could not be found later.
        sockets = [orders.watch_end(state, stack) for state in sandboxes]
        rows = []
        for state, sock in zip(sandboxes, sockets, strict=True):
            rows.append({"name": state.name, "status": orders.status_of(store, state, sock)})
            if not options.json:
                print(rows[-1]["status"], flush=True)
    if options.json:
        write_rows(rows)
    return 0


def rename_command(options: argparse.Namespace) -> int:
    """Give a sandbox another name."""
    from runner.options.values import sandbox_name  # with much that only boot needs

    new = sandbox_name(options.new, "NEW")
    store = Store.open()
    orders.rename(store, lookup.find(store, options.name), new)
    write_names([new], as_json=options.json)
    return 0


def trim_command(options: argparse.Namespace) -> int:
    """Have sandboxes give the host back what their files no longer use; print how much that was."""
    from runner.sandbox.trim import trim

    rows: list[dict[str, Any]] = []
    failed: dict[str, RootdiskError] = {}
    for state in _find(options.name):
        try:
            rows.append({"name": state.name, "bytes": trim(state)})
        except RootdiskError as err:
            failed[state.name] = err
            continue
        if not options.json:
            print(f"{printable(state.name)}  {rows[-1]['bytes'] / 1e6:.1f} MB", flush=True)
    if options.json:
        write_rows(rows)
    _raise(failed)
    return 0


def rm_command(options: argparse.Namespace) -> int:
    """Remove sandboxes that have ended; with --force, end running ones first. With --snapshot, remove snapshots."""
    if options.snapshot:
        from runner.commands import snapshots

        return snapshots.remove(options)
    store = Store.open()
    sandboxes = [lookup.find_any(store, name) for name in dict.fromkeys(options.name)]
    if not options.force:
        for sandbox in sandboxes:
            directory.check_removable(sandbox, force=False)
            if sandbox.running:
                name = printable(sandbox.name)
                gentler = "" if isinstance(sandbox, Unreadable) else f"runner stop {name}, or "
                raise BadInput(f"sandbox {name} runs", f"{gentler}runner rm --force {name}")
    failed = orders.end_all([sandbox for sandbox in sandboxes if sandbox.running])
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
    return [lookup.find(store, name) for name in dict.fromkeys(names)]


def _done(
    options: argparse.Namespace, sandboxes: Sequence[State | Unreadable], failed: dict[str, RootdiskError]
) -> int:
    """Print the names of the sandboxes without an error. Raise the last error, after printing the others."""
    write_names((sandbox.name for sandbox in sandboxes if sandbox.name not in failed), as_json=options.json)
    _raise(failed)
    return 0


def _raise(failed: dict[str, RootdiskError]) -> None:
    """Raise the last error, after printing the others."""
    errors = list(failed.values())
    for err in errors[:-1]:
        print(f"runner: {error_text(str(err))}", file=sys.stderr)
    if errors:
        raise errors[-1]


def _signal(text: str) -> int:
    try:
        return parse_signal(text)
    except BadInput as err:
        raise BadInput(f"--signal {text!r:.40}", err.hint) from err
