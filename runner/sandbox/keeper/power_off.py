"""Have a guest write back all data and power off, after its program has ended."""

from __future__ import annotations

import contextlib
import socket
import time
from selectors import EVENT_READ, EVENT_WRITE

from runner.channel import messages
from runner.sandbox.keeper.machine_output import MachineOutput
from runner.sandbox.keeper.watched import Watched, receive

POWER_OFF_S = 15.0
_READ_BYTES = 64 << 10


def power_off(channel: socket.socket, pending: bytes | bytearray, output: MachineOutput, watched: Watched) -> None:
    """Tell the guest to power off, after the `pending` bytes. Wait until it has, at most POWER_OFF_S seconds.

    Read and drop its remaining output: a guest that waits to send output would not read our frame.
    """
    deadline = time.monotonic() + POWER_OFF_S
    out = bytearray(pending + messages.frame(messages.ACK))
    sources = (channel, *output.sources)
    while (left := deadline - time.monotonic()) > 0:
        for source in sources:
            watched.watch(source, EVENT_READ | (EVENT_WRITE if source is channel and out else 0))
        ready = watched.wait(left)
        for source in [source for source in sources if ready.get(source, 0) & EVENT_READ]:
            data = receive(source, _READ_BYTES)
            if data == b"":
                sources = tuple(other for other in sources if other is not source)
                watched.watch(source, 0)
            elif data and source is not channel:
                output.log(source, data)
        if channel not in sources:
            break
        if ready.get(channel, 0) & EVENT_WRITE:
            with contextlib.suppress(BlockingIOError):
                del out[: channel.send(out)]
    for source in sources:
        watched.watch(source, 0)
