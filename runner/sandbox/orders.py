"""A connection to the keeper of a running sandbox, and orders for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

from rootdisk.durable import socket_address
from rootdisk.errors import Busy
from runner.channel.messages import KILL, frame
from runner.sandbox.directory import State, Unreadable, not_running, wait_end

CONNECT_S = 10.0  # for a keeper that stands still, or whose place for waiting clients is full
END_S = 15.0  # from an order to end at once until it is carried out
_RETRY_S = 0.05


def connect(state: State | Unreadable) -> socket.socket:
    """Connected to `state`'s keeper; BadInput if it does not run, Busy if it does not answer."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with socket_address(state.folder, "control") as address:
                sock.connect(address)
            sock.setblocking(True)
            return sock
        except BlockingIOError as err:  # as many wait as can
            sock.close()
            if time.monotonic() > deadline:
                raise Busy(f"the keeper of sandbox {state.name} does not answer", f"runner kill {state.name}") from err
            time.sleep(_RETRY_S)
        except OSError as err:
            sock.close()
            raise not_running(state) from err


def give(state: State | Unreadable, order: bytes) -> None:
    """Give an order, which needs no answer; BadInput if the sandbox does not run, or ends just now."""
    with connect(state) as sock:
        try:
            sock.sendall(order)
        except ConnectionError as err:
            raise not_running(state) from err


def end(state: State | Unreadable) -> None:
    """End a sandbox at once: by an order, or with its keeper if that does not carry it out. Busy if neither helps."""
    with contextlib.suppress(Busy):
        give(state, frame(KILL))
        wait_end(state, END_S)
        return
    _kill_keeper(state)
    wait_end(state, END_S)


def _kill_keeper(state: State | Unreadable) -> None:
    """Kill a keeper, whose machine the kernel ends with it, if it is known."""
    pid = state.pid if isinstance(state, State) else 0
    if pid <= 0:
        return
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The process that has the sandbox's lock open is its keeper, and not another one by the same number.
        lock = os.stat(state.folder / "lock")
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), lock):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    return
    except OSError:
        pass
    finally:
        os.close(process)
