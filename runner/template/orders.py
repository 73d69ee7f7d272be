"""Messages between a keeper and the init of a saved machine: when it is saved, and when it continues."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable

from rootdisk import records
from rootdisk.records import Record
from runner.channel import messages

ENTROPY_BYTES = 64


def resume(orders: Iterable[Record]) -> bytes:
    """Return the message with which a machine continues: entropy, and `orders` for it."""
    entropy = ("entropy", os.urandom(ENTROPY_BYTES).hex().encode())
    return messages.frame(messages.RESUME, records.pack([entropy, *orders]))


def hear(channel: socket.socket, deadline: float) -> bytes:
    """Receive a message without content.

    Raises:
        TimeoutError: It does not come in time.
        ValueError: The machine has ended.
    """
    received = bytearray()
    while len(received) < messages.HEADER.size:
        channel.settimeout(max(deadline - time.monotonic(), 0.001))
        data = channel.recv(messages.HEADER.size - len(received))
        if not data:
            raise ValueError("the machine has ended")
        received += data
    return bytes(received)


def tell_time(channel: socket.socket, answer: bytes | bytearray) -> None:
    """Check that the guest has answered RESUMED, and send it the time.

    Raises:
        ValueError: It has answered with something else.
    """
    if bytes(answer) != messages.frame(messages.RESUMED):
        raise ValueError("the guest answered with something else")
    now_ns = time.time_ns()
    channel.sendall(messages.frame(messages.TIME, messages.TIME_FORMAT.pack(now_ns // 10**9, now_ns % 10**9)))
