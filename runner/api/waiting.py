"""Wait for a socket in short steps.

An exception that another thread asks for (`_thread.interrupt_main`, as by `ray.cancel`) reaches Python code between two calls, and
ends no call that waits.
"""

from __future__ import annotations

import select
import socket
import time

STEP_S = 0.2


def events_of(sock: socket.socket, wanted: int, deadline: float | None = None) -> int:
    """Return which of the `wanted` events of poll(2) have come; 0 if none until `deadline`."""
    waiting = select.poll()
    waiting.register(sock, wanted)
    while True:
        left_s = STEP_S if deadline is None else min(STEP_S, max(0.0, deadline - time.monotonic()))
        for _, events in waiting.poll(left_s * 1000):
            return events
        if left_s < STEP_S:
            return 0
