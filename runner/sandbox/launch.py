"""Start a prepared sandbox: fork its keeper, then be its main client.

`launch` forwards input and output of the program, or returns when the program of a detached sandbox has started. Keeper and
machine end together, even if other processes are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.errors import RootdiskError
from rootdisk.system.sockets import listening
from runner.machine import tsc
from runner.sandbox.directory import discard
from runner.sandbox.keeper.process import keep
from runner.sandbox.prepare import PreparedSandbox
from runner.sandbox.state import STOP_S
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.channel.session import Session

_CLIENTS = 256  # that wait to be accepted
STOPPED_S = 40.0  # time after a signal for program, guest and keeper to end, with a margin


def launch(prepared: PreparedSandbox, store: Store, counter: tsc.Counter) -> int:
    """Start the keeper. Return the exit status of the program, or 0 when a detached program has started.

    Raises:
        RootdiskError: The sandbox has failed, with the reason of the guest or the console.
    """
    ours, pid = begin(prepared, store, counter)
    return await_end(prepared, ours, pid)


def await_end(prepared: PreparedSandbox, ours: socket.socket, pid: int) -> int:
    """Be the main client of a sandbox that `begin` has started; as `launch`."""
    spec = prepared.spec
    from runner.channel.session import Lost, Session  # loaded while the guest starts

    session = Session(ours)
    stopped: list[int] = []  # signals that came before the program had started
    try:
        with ours:
            if spec.detached:
                return _started(session)
            stdin = 0 if spec.interactive else None
            with contextlib.ExitStack() as terminal:
                end_progress = _shown_fill(prepared, terminal)
                # Before the program has started, Ctrl-C must be a signal to us: the guest may never start.
                status = session.run(
                    stdin=stdin,
                    terminal=spec.terminal,
                    on_ready=lambda: _ready(end_progress, terminal, raw=spec.terminal and spec.interactive),
                    on_signal=lambda number: _forward_signal(session, number, stopped),
                    patience_s=STOPPED_S,
                    is_main=True,
                )
            return 128 + stopped[0] if stopped and not session.is_ready else status
    except Lost as err:
        os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            discard(prepared.sandbox.folder)
        raise RootdiskError("the sandbox's keeper was killed", "its machine ended with it") from err


def _shown_fill(prepared: PreparedSandbox, stack: contextlib.ExitStack) -> Callable[[], None]:
    """Show how far the disk is fetched until the function that is returned is called."""
    if prepared.served is None or prepared.is_quiet:
        return lambda: None
    from runner.lazy.shown import shown_fill

    return stack.enter_context(shown_fill(prepared.served))


def _ready(end_progress: Callable[[], None], stack: contextlib.ExitStack, *, raw: bool) -> None:
    """Leave the terminal to the program."""
    from runner.channel.session import raw_terminal

    end_progress()
    stack.enter_context(raw_terminal(raw))


def begin(prepared: PreparedSandbox, store: Store, counter: tsc.Counter) -> tuple[socket.socket, int]:
    """Start the keeper. Return the connection of its main client, and its process number."""
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = socket.socketpair()
    listener = listen(prepared.sandbox.folder)
    pid = os.fork()
    if not pid:
        ours.close()
        keep(prepared, store, theirs, listener, counter)
    theirs.close()
    listener.close()
    prepared.sandbox.release()
    prepared.artifact.release()
    if prepared.served is not None:
        prepared.served.close()
    return ours, pid


def listen(folder: Path) -> socket.socket:
    """Create the control socket in `folder`."""
    return listening(folder, "control", _CLIENTS)


def _started(session: Session) -> int:
    """Wait until the program has started. Return 0, or its exit status if it has ended already."""
    from runner.channel.session import Lost

    started = []
    try:
        return session.run(stdin=None, terminal=False, on_ready=lambda: started.append(1), on_signal=None)
    except Lost:
        if not started:
            raise
        return 0


def _forward_signal(session: Session, number: int, stopped: list[int]) -> None:
    """Forward a signal to the program. SIGTERM becomes the stop signal of its image, followed by SIGKILL.

    SIGINT does so too while the program has not started. A stop before the start is added to `stopped`.
    """
    from runner.channel import messages

    if number in (signal.SIGTERM, signal.SIGINT) and not session.is_ready:
        stopped.append(number)
    if number == signal.SIGTERM or (number == signal.SIGINT and not session.is_ready):
        session.send(messages.STOP, STOP_S.to_bytes(4, "little"))
    else:
        session.send_signal(number)
