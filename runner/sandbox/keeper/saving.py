"""Carry the orders of a snapshot to QEMU, and its answers back: the sockets of runner/sandbox/routing/pause.py."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from runner.sandbox.keeper.room import Monitor
from runner.sandbox.routing.pause import Order, Pause


def go_on(
    pause: Pause, monitor: Monitor, sock: socket.socket | None, open_memory: Callable[[str], int], *, is_full: bool
) -> None:
    """Continue with a snapshot. `open_memory` creates the file for the memory, by the name of the snapshot's new directory.

    With `is_full`, the machine has stopped at a write, because the host's disk is full.
    """
    pause.answer(monitor.take_answers())
    if is_full:
        pause.end("the host's disk is full")
    pause.look(time.monotonic(), time.time_ns())
    for order in pause.take_orders():
        if sock is None:
            pause.refuse(order, "the machine has no monitor")
        elif order.folder:
            _send_file(pause, order, monitor, sock, open_memory)
        else:
            monitor.out += order.line


def _send_file(
    pause: Pause, order: Order, monitor: Monitor, sock: socket.socket, open_memory: Callable[[str], int]
) -> None:
    try:
        with open(open_memory(order.folder), "wb", buffering=0) as memory:
            socket.send_fds(sock, [bytes(monitor.out), order.line], [memory.fileno()])
        monitor.out.clear()
    except OSError as err:
        pause.refuse(order, str(err.strerror))
