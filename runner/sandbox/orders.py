"""Connect to the keeper of a running sandbox and send it orders; act on several sandboxes at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from rootdisk.durable import socket_address
from rootdisk.errors import BadInput, Busy, RootdiskError
from runner.channel import messages
from runner.channel.messages import KILL, VIOLATED, frame
from runner.sandbox import directory, lookup
from runner.sandbox.liveness import not_running, wait_end
from runner.sandbox.lookup import read
from runner.sandbox.state import State, Unreadable
from runner.store.events import Events
from runner.store.store import Store

CONNECT_S = 10.0  # if the keeper hangs or its queue of waiting clients is full
END_S = 15.0  # from KILL to the end of the sandbox
STOPPED_S = 60.0  # in addition to the time for the program: the guest writes everything back, the keeper exits
_RETRY_S = 0.05
_LOOK_S = 1.0  # for a sandbox that starts again
SandboxState = TypeVar("SandboxState", State, State | Unreadable)


def connect(state: State | Unreadable) -> socket.socket:
    """Connect to the keeper of a sandbox.

    Raises:
        BadInput: The sandbox does not run.
        Busy: The keeper does not answer.
    """
    deadline = time.monotonic() + CONNECT_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with socket_address(state.folder, "control") as address:
                sock.connect(address)
            sock.setblocking(True)
            return sock
        except BlockingIOError as err:  # the queue is full
            sock.close()
            if time.monotonic() > deadline:
                raise Busy(f"the keeper of sandbox {state.name} does not answer", f"runner kill {state.name}") from err
            time.sleep(_RETRY_S)
        except OSError as err:
            sock.close()
            raise not_running(state) from err


def give(state: State | Unreadable, order: bytes) -> None:
    """Send an order that has no response.

    Raises:
        BadInput: The sandbox does not run or is just ending.
        Busy: The keeper does not answer.
    """
    with connect(state) as sock:
        try:
            sock.sendall(order)
        except ConnectionError as err:
            raise not_running(state) from err


def rename(store: Store, state: State, name: str) -> None:
    """Give a sandbox another name; if it runs, its keeper does it.

    Raises:
        RootdiskError: It does not; another sandbox may have that name.
    """
    if not state.running:
        directory.Sandbox.rename(state, name)
        Events(store.root, name).tell("renamed", before=state.name)
    elif name != state.name:
        _rename_running(state, name)


def _rename_running(state: State, name: str) -> None:
    with connect(state) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(frame(messages.RENAME, name.encode()))
        decoder = messages.Decoder()
        while data := sock.recv(4096):
            for kind, _, payload in decoder.feed(data):
                text = payload.decode(errors="replace")
                if kind == messages.EXIT:
                    return
                if kind == messages.ERROR and text == VIOLATED:
                    hint = f"runner stop {state.name}, then rename it"
                    raise BadInput(
                        f"sandbox {state.name} is kept by an older runner, which renames stopped ones only", hint
                    )
                if kind == messages.ERROR:
                    raise BadInput(text)
    raise not_running(state)


def end(state: State | Unreadable) -> None:
    """End a sandbox at once. If the keeper does not do it, kill the keeper, and the kernel ends its machine.

    Raises:
        Busy: The sandbox still runs.
    """
    with contextlib.suppress(Busy):
        with _may_have_ended():
            give(state, frame(KILL))
        wait_end(state, END_S)
        return
    _signal_keeper(state, signal.SIGKILL)
    wait_end(state, END_S)


def _signal_keeper(state: State | Unreadable, number: signal.Signals) -> None:
    """Send the keeper a signal, if its process is known."""
    pid = state.pid if isinstance(state, State) else 0
    if pid <= 0:
        return
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The process ID may have been reused: only the keeper has the lock open.
        lock = os.stat(state.folder / "lock")
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), lock):
                    signal.pidfd_send_signal(process, number)
                    return
    except OSError:
        pass
    finally:
        os.close(process)


def stop_all(sandboxes: Sequence[State], seconds: int) -> dict[str, RootdiskError]:
    """Stop all of `sandboxes` at once; return the errors by name."""
    if seconds < 0:
        raise BadInput(f"--time {seconds}", "0 or more seconds")
    seconds = min(seconds, 0xFFFF_FFFF)  # this is for ever already

    def order(state: State) -> None:
        """Give a running sandbox the order to stop."""
        if state.running:
            give(state, messages.frame_number(messages.STOP, seconds))

    return _on_all(sandboxes, order, lambda state: _wait_stopped(state, order, seconds + STOPPED_S))


def _wait_stopped(state: State, order: Callable[[State], None], seconds: float) -> None:
    """Wait until a sandbox has stopped. Its order is lost if the program ends just then and starts again: the next run gets it too.

    Raises:
        Busy: It still runs after `seconds`.
    """
    end = time.monotonic() + seconds
    while state.spec.restart != "no" and (left := end - time.monotonic()) > _LOOK_S:
        with contextlib.suppress(Busy):
            wait_end(state, min(left, _LOOK_S))
            return
        with contextlib.suppress(BadInput, OSError, ValueError):
            now = read(state.folder)
            if now.running and now.pid == state.pid and now.started != state.started:  # by its policy, not by a user
                order(now)
                state = now
    wait_end(state, max(0.0, end - time.monotonic()))


def stop_by_host(sandboxes: Sequence[State]) -> dict[str, RootdiskError]:
    """Stop all of `sandboxes` as a host does that shuts down: `start --all` starts them again. Return the errors by name."""

    def order(state: State) -> None:
        """Tell the keeper itself."""
        _signal_keeper(state, signal.SIGTERM)

    return _on_all(sandboxes, order, lambda state: wait_end(state, STOPPED_S))


def kill_all(sandboxes: Sequence[State], number: int | None = None) -> dict[str, RootdiskError]:
    """End all of `sandboxes`, or send their programs the signal `number`; return the errors by name.

    Raises:
        BadInput: One of them does not run; nothing was done then.
    """
    for state in sandboxes:
        if not state.running:
            raise not_running(state)
    if number is None or number == signal.SIGKILL:
        return end_all(sandboxes)
    order = messages.frame_number(messages.SIGNAL, number)
    return _on_all(sandboxes, lambda state: give(state, order), lambda state: None, forgive=False)


def _on_all(
    sandboxes: Sequence[SandboxState],
    order: Callable[[SandboxState], None],
    wait: Callable[[SandboxState], None],
    *,
    forgive: bool = True,
) -> dict[str, RootdiskError]:
    """Give all an order, then wait for each; return the errors by name.

    With `forgive`, a sandbox may end before it gets its order; `wait` then waits for the rest of its end.
    """
    failed: dict[str, RootdiskError] = {}
    for step in (order, wait):
        for sandbox in sandboxes:
            if sandbox.name in failed:
                continue
            try:
                with _may_have_ended() if forgive else contextlib.nullcontext():
                    step(sandbox)
            except RootdiskError as err:
                failed[sandbox.name] = err
    return failed


def end_all(sandboxes: Sequence[SandboxState]) -> dict[str, RootdiskError]:
    """End all of `sandboxes` at once: by an order, or by ending their keepers if those do not carry it out."""
    running = [sandbox for sandbox in sandboxes if sandbox.running]

    def order(sandbox: SandboxState) -> None:
        """Give the order to end; a keeper that does not answer is killed later."""
        with contextlib.suppress(Busy):
            give(sandbox, messages.frame(messages.KILL))

    return _on_all(running, order, end)


def _may_have_ended() -> contextlib.suppress:
    """Ignore the failure of an order if the sandbox has just ended, or is about to.

    A keeper takes no more orders before it gives up its lock. So after a refused order the lock has to be waited for, and the
    refusal is not to be trusted.
    """
    return contextlib.suppress(BadInput)


def watch_end(state: State, stack: contextlib.ExitStack) -> socket.socket | None:
    """Open a connection on which the keeper reports the end of the sandbox; None if it has ended."""
    if not state.running:
        return None
    with _may_have_ended():
        sock = stack.enter_context(connect(state))
        with contextlib.suppress(ConnectionError):
            sock.sendall(messages.frame(messages.WAIT))
        return sock
    return None


def status_of(store: Store, state: State, sock: socket.socket | None) -> int:
    """Wait until a sandbox has ended and return its exit status.

    The timeout of `sock` is that of the whole.

    Raises:
        TimeoutError: The sandbox has not ended in this time.
        RootdiskError: The status is not known.
    """
    timeout_s = sock.gettimeout() if sock is not None else None
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    with contextlib.ExitStack() as stack:
        while sock is not None:
            decoder = messages.Decoder()
            with contextlib.suppress(ConnectionError):
                while data := sock.recv(4096):
                    if (status := end_of(decoder, data)) is not None:
                        return status
            # A sandbox that starts again lets go of its clients before that.
            time.sleep(_RETRY_S)
            if (sock := watch_end(state, stack)) is not None and deadline is not None:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
    if state.running:
        wait_end(state)
        state = lookup.find(store, state.spec.name)  # it ended in between
    return kept_status(state)


def end_of(decoder: messages.Decoder, data: bytes) -> int | None:
    """Return the exit status of a sandbox, if the keeper says it in `data`; Busy if it refuses to."""
    for kind, _, payload in decoder.feed(data):
        if kind == messages.EXIT:
            return messages.number(payload)
        if kind == messages.ERROR:
            raise Busy(payload.decode(errors="replace"))
    return None


def kept_status(state: State) -> int:
    """Return the exit status of a sandbox that has ended; BadInput if it has none."""
    if state.status is None:
        raise BadInput(f"sandbox {state.spec.name} was cut off", "its keeper was killed: it has no exit status")
    return state.status
