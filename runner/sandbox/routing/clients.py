"""State of clients and sessions in the router: buffered data and pending frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from runner.channel import messages
from runner.channel.messages import REQUEST_MAX, Decoder, frame, frame_number

_PIECE_BYTES = 32 << 10
_SEGMENTS_MAX = 64
_SIGNALS_MAX = 64


class Client:
    """A connected process of the same user."""

    def __init__(self) -> None:
        self.decoder = Decoder(messages.FROM_CLIENT, REQUEST_MAX)
        self.session: Session | None = None
        self.is_visitor = True  # has no session and does not wait for the end
        self.waits = False  # for the end of the sandbox
        self.leaves = False  # disconnect when everything is sent, and ignore its input
        self._segments: deque[tuple[int, bytearray]] = deque()
        self._waiting = 0  # bytes in all segments
        self._wire = bytearray()  # the frame being sent
        self._credit = 0
        self._last = b""

    @property
    def waiting(self) -> int:
        """Bytes buffered for the client."""
        return self._waiting + len(self._wire) + len(self._last)

    @property
    def held(self) -> int:
        """Bytes buffered for and from the client."""
        return len(self.decoder) + self.waiting

    def put(self, kind: int, payload: bytes) -> None:
        """Queue a frame. Output is appended to queued output of the same kind: frames of single bytes would take much space."""
        if kind in (messages.STDOUT, messages.STDERR):
            if not payload:
                return
            self._waiting += len(payload)
            for queued_kind, data in reversed(self._segments):
                if queued_kind == kind:
                    data += payload
                    return
                if len(self._segments) < _SEGMENTS_MAX:
                    break
        else:
            self._waiting += len(payload)
        self._segments.append((kind, bytearray(payload)))

    def grant(self, count: int) -> None:
        """Queue credit for `count` bytes of input."""
        self._credit += count

    def leave(self, *last: bytes) -> None:
        """Disconnect after all queued data and the frames `last`."""
        self._last += b"".join(last)
        self.leaves = True

    def out(self) -> bytearray:
        """Return the bytes to send next, or an empty buffer."""
        if not self._wire:
            if self._credit:
                self._wire += frame_number(messages.CREDIT, self._credit)
                self._credit = 0
            elif self._segments:
                kind, data = self._segments[0]
                self._wire += frame(kind, bytes(data[:_PIECE_BYTES]))
                self._waiting -= min(len(data), _PIECE_BYTES)
                del data[:_PIECE_BYTES]
                if not data:
                    self._segments.popleft()
            elif self._last:
                self._wire += self._last
                self._last = b""
        return self._wire

    def sent(self, count: int) -> None:
        """Remove `count` sent bytes of `out`."""
        del self._wire[:count]


class Session:
    """A program in the guest, with frames pending for it."""

    def __init__(self, number: int, client: Client | None) -> None:
        self.number = number
        self.client = client  # None: disconnected, or the output goes to a log
        self.is_detached = False  # its client waits for its start only
        self.unread = 0  # bytes of output for which no new credit was given
        self.untaken = 0  # bytes of input for which the guest has given no new credit
        self.credit = 0
        self.signals: dict[int, None] = {}  # in order of arrival, each once
        self.size = b""

    def owed(self) -> Iterator[bytes]:
        """Yield the pending frames for the guest and clear them."""
        if self.size:
            yield frame(messages.RESIZE, self.size, self.number)
        for number in self.signals:
            yield frame_number(messages.SIGNAL, number, self.number)
        if self.credit:
            yield frame_number(messages.CREDIT, self.credit, self.number)
        self.size, self.credit = b"", 0
        self.signals.clear()

    def grant(self, count: int) -> None:
        """Give credit for up to `count` bytes of output that the client has read."""
        count = min(count, self.unread)
        self.unread -= count
        self.credit += count

    def signal(self, number: int) -> None:
        """Queue a signal for the program. Invalid numbers are ignored."""
        if len(self.signals) < _SIGNALS_MAX and 0 < number <= _SIGNALS_MAX:
            self.signals[number] = None
