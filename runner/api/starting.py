"""Start the keeper of a sandbox, and listen to it until the program has started or the sandbox has ended."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rootdisk.errors import BadInput, TimedOut
from runner.api.life import Life
from runner.api.store import Place, open_store
from runner.api.waiting import events_of
from runner.sandbox import directory
from runner.sandbox.state import State
from runner.store.store import Store


class Started(NamedTuple):
    """A sandbox whose keeper runs; its program may not have started yet."""

    name: str
    store: Store
    sock: socket.socket  # to the keeper, as its main client
    life: Life


def boot(artifact: str, command: Sequence[str], store: Place | None, options: Mapping[str, Any]) -> Started:
    """Fetch the artifact, create the sandbox and start its keeper."""
    # Half of what the API loads. A program that only looks at sandboxes does not need it.
    from runner.api.options import boot_options
    from runner.machine import ports
    from runner.options import boot as boot_request
    from runner.sandbox import starter

    parsed = boot_options(artifact, command, options)
    is_tied = not parsed.detach
    parsed.rm = parsed.rm or not (parsed.detach or parsed.keep)
    parsed.detach = True  # the output goes to a log
    wanted = boot_request.request(parsed)
    opened = open_store(store)
    starter.current()  # loads while the artifact is fetched
    ports.check(wanted.spec.forwards)
    prepared = boot_request.create(opened, parsed, wanted)
    sock, _ = starter.begin(prepared._replace(is_tied=is_tied), opened)
    with contextlib.suppress(OSError):
        directory.sweep(opened)
    return Started(wanted.spec.name, opened, sock, Life(is_tied=is_tied))


def again(store: Store, state: State) -> Started:
    """Start the keeper of a kept sandbox; BadInput if it runs."""
    from runner.machine import ports
    from runner.sandbox import prepare, starter

    if state.running:
        raise BadInput(f"sandbox {state.name} is already running", "exec a program in it")
    starter.current()
    ports.check(state.spec.forwards)
    spec = state.spec._replace(detached=True)
    sock, _ = starter.begin(prepare.reopen(store, state._replace(spec=spec)), store)
    return Started(state.name, store, sock, Life(is_tied=False))


def listen(started: Started, is_enough: Callable[[Life], bool], timeout: float | None) -> None:
    """Listen to the keeper until it has said enough; TimedOut after `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while not is_enough(started.life):
        if not events_of(started.sock, select.POLLIN, deadline):
            raise still_runs(started.name, timeout)
        try:
            data = started.sock.recv(4096)
        except ConnectionError:
            data = b""
        started.life.receive(data)


def is_closed(name: str) -> BadInput:
    """Return the error for a sandbox whose end the closed object has not seen."""
    return BadInput(f"sandbox {name} is closed", "wait for its end before close")


def still_runs(name: str, seconds: float | None) -> TimedOut:
    """Return the error for a sandbox that has not ended in time."""
    return TimedOut(f"sandbox {name} still runs after {seconds or 0:g} s", "wait longer, or stop it")
