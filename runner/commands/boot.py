"""The commands boot, start and restart."""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
from collections.abc import Iterator

from rootdisk.cli.rows import write_names
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.system import process
from rootdisk.text import describe_error, error_text
from runner.machine import ports
from runner.machine.tsc import Counter
from runner.options.boot import create, request
from runner.sandbox import directory, launch, lookup, prepare
from runner.sandbox.keeper.ending import FAILED
from runner.sandbox.keeper.restart import Policy
from runner.sandbox.prepare import PreparedSandbox
from runner.sandbox.state import Spec, State
from runner.store.store import Store


def boot_command(options: argparse.Namespace) -> int:
    """Boot a sandbox. In the foreground, return its program's exit status."""
    counter = Counter()  # measures while the rest of this function runs
    process.protect_secrets()
    wanted = request(options)
    store = Store.open()
    ports.check(wanted.spec.forwards)
    prepared = create(store, options, wanted)
    _explain_network(store, prepared.spec)
    status = launch.launch(prepared._replace(is_quiet=options.quiet), store, counter)
    if options.detach:
        write_names([wanted.spec.name], as_json=options.json)
    with contextlib.suppress(OSError):
        directory.sweep(store)
    return status


def start_command(options: argparse.Namespace) -> int:
    """Start kept sandboxes again."""
    if options.interactive and not options.attach:
        raise BadInput("--interactive", "write it with --attach: runner start -ai NAME")
    counter = Counter()
    process.protect_secrets()
    store = Store.open()
    if options.all:
        return _start_all(options, store, counter)
    if not options.name:
        raise BadInput("start: no NAME", "name a sandbox, or use --all")
    states = [lookup.find(store, name) for name in dict.fromkeys(options.name)]
    if options.attach and len(states) > 1:
        raise BadInput("--attach with several sandboxes", "start them one by one")
    for state in states:
        if state.running:
            raise BadInput(f"sandbox {state.name} is already running", f"runner exec {state.name} COMMAND")
    return _start(options, store, states, counter)


def _start_all(options: argparse.Namespace, store: Store, counter: Counter) -> int:
    """Start what its restart policy wants started, all at once. One that cannot start, or hangs, does not stop the others."""
    if options.name or options.attach:
        raise BadInput("--all with a NAME or --attach", "use one of them")
    states = [state for state in lookup.states(store) if not state.running and not state.folder.name.startswith(".")]
    begun: list[tuple[PreparedSandbox, socket.socket, int]] = []
    started: list[str] = []
    wanted = [state for state in states if _starts_with_host(state)]
    for state in wanted:
        with _told_of(state.name):
            ports.check(state.spec.forwards)
            prepared = prepare.reopen(store, state._replace(spec=state.spec._replace(detached=True)))
            begun.append((prepared, *launch.begin(prepared, store, counter)))
    for prepared, sock, pid in begun:
        with _told_of(prepared.spec.name):
            if launch.await_end(prepared, sock, pid) == 0:
                started.append(prepared.spec.name)
    write_names(started, as_json=options.json)
    return 0 if len(started) == len(wanted) else FAILED


def _starts_with_host(state: State) -> bool:
    with _told_of(state.name):
        return Policy.parse(state.spec.restart).starts_with_host(state)
    return False


@contextlib.contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Print an error of one sandbox of several, and continue."""
    try:
        yield
    except (RootdiskError, OSError) as err:
        print(f"runner: {error_text(f'sandbox {name}: {describe_error(err)}')}", file=sys.stderr)


def restart_command(options: argparse.Namespace) -> int:
    """Stop kept sandboxes, all at once, and start them again."""
    from runner.sandbox import orders  # with much that no boot needs

    counter = Counter()
    process.protect_secrets()
    store = Store.open()
    states = [lookup.find(store, name) for name in dict.fromkeys(options.name)]
    for state in states:
        if not state.spec.keep:
            raise BadInput(f"sandbox {state.name} is removed when it stops", "boot it with --keep or -d to restart it")
    for err in orders.stop_all(states, options.time).values():
        raise err
    options.attach = options.interactive = False
    return _start(options, store, [lookup.find(store, state.name) for state in states], counter)


def _start(options: argparse.Namespace, store: Store, states: list[State], counter: Counter) -> int:
    status, started = 0, []
    for state in states:
        spec = state.spec._replace(detached=not options.attach)
        if options.interactive:
            spec = spec._replace(interactive=True)
        ports.check(spec.forwards)
        exit_status = launch.launch(prepare.reopen(store, state._replace(spec=spec)), store, counter)
        status = status or exit_status
        started.append(state.name)
    if not options.attach:
        write_names(started, as_json=options.json)
    return status


def _explain_network(store: Store, spec: Spec) -> None:
    """At the first boot, tell the user what a guest can reach through QEMU's own network."""
    marker = store.root / "told-network"
    if spec.network == "none" or spec.backend == "krun" or not sys.stderr.isatty() or marker.exists():
        return
    from runner.machine import passt

    if not passt.is_usable():
        print(
            "runner: without passt, a guest reaches services on this host's 127.0.0.1 at 10.0.2.2: see runner doctor",
            file=sys.stderr,
        )
        with contextlib.suppress(OSError):
            marker.touch(mode=0o600)
