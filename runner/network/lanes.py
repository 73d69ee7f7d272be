"""The lanes of streams: several ports of the machine that carry one sequence of bytes.

Byte n goes through lane n / STRIPE % lanes. QEMU takes 4 KiB of a port at a time, so that one alone is slow.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence

from runner.channel import messages
from runner.channel.messages import STRIPE, Decoder

_READ_BYTES = 128 << 10  # in one go
_SEND_BYTES = 128 << 10  # that wait for the guest


class Lanes:
    """The host's side."""

    def __init__(self, lanes: Sequence[socket.socket]) -> None:
        self._lanes = tuple(lanes)
        self.known = frozenset(lanes)
        self._sent = self._received = 0
        self._out = bytearray()
        self._decoder = Decoder(messages.STREAMS_FROM_GUEST)

    @property
    def is_behind(self) -> bool:
        """Return whether frames that have come are still to be yielded."""
        return self._decoder.next_kind() is not None

    def receive(self, is_late: Callable[[], bool]) -> Iterator[tuple[int, int, bytes]]:
        """Yield the frames that have arrived, until `is_late`; bytes that are not a frame are skipped."""
        until = self._received + (0 if self.is_behind else _READ_BYTES)
        while self._received < until:
            place, rest = divmod(self._received, STRIPE)
            try:
                data = self._lanes[place % len(self._lanes)].recv(STRIPE - rest)
            except OSError:
                break
            if not data:
                break
            self._received += len(data)
            self._decoder.add(data)
        while not is_late() and (decoded := self._decoder.take()) is not None:
            if decoded[0] != messages.INVALID:
                yield decoded

    def send(self, more: Callable[[int], bytearray], is_late: Callable[[], bool]) -> socket.socket | None:
        """Send frames of `more(limit)` until `is_late`. Return the lane to continue with when it takes more; None if everything is sent."""
        while True:
            if len(self._out) < _SEND_BYTES:
                self._out += more(_SEND_BYTES - len(self._out))
            if not self._out:
                return None
            start = self._sent
            lane = self._lanes[start // STRIPE % len(self._lanes)]
            if is_late():
                return lane
            try:
                count = lane.send(self._out[: STRIPE - start % STRIPE])
            except BlockingIOError:
                return lane
            except OSError:
                return None  # the machine has ended, as the channel says
            self._sent += count
            del self._out[:count]
