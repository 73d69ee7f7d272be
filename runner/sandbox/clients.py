"""A client and a session as the router keeps them: what is held for each, and what is owed to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from runner.channel import messages
from runner.channel.messages import REQUEST_MAX, Decoder, frame, frame_number

_PIECE_BYTES = 32 << 10
_SEGMENTS_MAX = 64
_SIGNALS_MAX = 64


class Client:
    """Another process of the same user, as seen from here."""

    def __init__(self) -> None:
        self.decoder = Decoder(messages.FROM_CLIENT, REQUEST_MAX)
        self.session: Session | None = None
        self.is_visitor = True  # it has asked for no session, and does not wait for the end
        self.waits = False  # for the sandbox's end
        self.leaves = False  # when everything is sent; what it says is not listened to any more
        self._segments: deque[tuple[int, bytearray]] = deque()
        self._waiting = 0  # bytes in all of them
        self._wire = bytearray()  # the frame that is being sent
        self._credit = 0
        self._last = b""

    @property
    def waiting(self) -> int:
        """Bytes that are held for it."""
        return self._waiting + len(self._wire) + len(self._last)

    @property
    def held(self) -> int:
        """Bytes that are held for it and from it."""
        return len(self.decoder) + self.waiting

    def put(self, kind: int, payload: bytes) -> None:
        """A frame for it; output joins what waits already, as headers would take more room than single bytes."""
        if kind in (messages.STDOUT, messages.STDERR):
            if not payload:
                return
            self._waiting += len(payload)
            for held, data in reversed(self._segments):
                if held == kind:
                    data += payload
                    return
                if len(self._segments) < _SEGMENTS_MAX:
                    break
        else:
            self._waiting += len(payload)
        self._segments.append((kind, bytearray(payload)))

    def grant(self, count: int) -> None:
        self._credit += count

    def leave(self, *last: bytes) -> None:
        """Let it go after all that is for it, and `last`."""
        self._last += b"".join(last)
        self.leaves = True

    def out(self) -> bytearray:
        """What is to be sent next; empty if there is nothing."""
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
        """So many bytes of `out` have been."""
        del self._wire[:count]


class Session:
    """A program in the guest, and what is owed to it."""

    def __init__(self, number: int, client: Client | None) -> None:
        self.number = number
        self.client = client  # None: it has gone, or the output goes to a log
        self.unread = 0  # bytes of output that have not been granted again
        self.untaken = 0  # bytes of input that the guest has not granted again
        self.credit = 0
        self.signals: dict[int, None] = {}  # in the order they came, each once
        self.size = b""

    def owed(self) -> Iterator[bytes]:
        """Frames for the guest, once."""
        if self.size:
            yield frame(messages.RESIZE, self.size, self.number)
        for number in self.signals:
            yield frame_number(messages.SIGNAL, number, self.number)
        if self.credit:
            yield frame_number(messages.CREDIT, self.credit, self.number)
        self.size, self.credit = b"", 0
        self.signals.clear()

    def grant(self, count: int) -> None:
        """So many bytes of its output have gone on; not more than there were."""
        count = min(count, self.unread)
        self.unread -= count
        self.credit += count

    def signal(self, number: int) -> None:
        if len(self.signals) < _SIGNALS_MAX and 0 < number <= _SIGNALS_MAX:
            self.signals[number] = None
