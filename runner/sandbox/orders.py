"""Connect to the keeper of a running sandbox and send it orders."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

from rootdisk.durable import socket_address
from rootdisk.errors import Busy
from runner.channel.messages import KILL, frame
from runner.sandbox.liveness import not_running, wait_end
from runner.sandbox.state import State, Unreadable

CONNECT_S = 10.0  # if the keeper hangs or its queue of waiting clients is full
END_S = 15.0  # from KILL to the end of the sandbox
_RETRY_S = 0.05


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


def end(state: State | Unreadable) -> None:
    """End a sandbox at once. If the keeper does not do it, kill the keeper, and the kernel ends its machine.

    Raises:
        Busy: The sandbox still runs.
    """
    with contextlib.suppress(Busy):
        give(state, frame(KILL))
        wait_end(state, END_S)
        return
    _kill_keeper(state)
    wait_end(state, END_S)


def _kill_keeper(state: State | Unreadable) -> None:
    """Kill the keeper, if its process is known."""
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
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    return
    except OSError:
        pass
    finally:
        os.close(process)
