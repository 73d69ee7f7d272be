"""Streams: connections between programs of a guest and the keeper, as frames with credit both ways. Pure.

A stream holds at most WINDOW bytes from the guest, and OUT_MAX for it, whatever the guest does. docs/layout-1.md, "Streams".
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Protocol

from runner.channel import messages
from runner.channel.messages import WINDOW, frame, frame_number

OUT_MAX = 64 << 10  # bytes for the guest, above which nothing more is read for it
_PIECE_BYTES = 32 << 10
_GRANT_BYTES = 64 << 10  # credit is not given for less
_DATAGRAMS_MAX = 64  # answers that wait for the guest
_ENDPOINT = struct.Struct("<4sH")


class Listener(Protocol):
    """Gets the events of a stream."""

    def heard(self) -> None:
        """The guest has sent something, or has ended its side."""

    def drained(self) -> None:
        """The guest has taken something."""

    def lost(self) -> None:
        """The guest has closed the stream, or has broken a rule."""


class Stream:
    """The keeper's side of a connection."""

    __slots__ = ("credit", "ends", "incoming", "is_ended", "is_over", "is_queued", "listener", "number", "outgoing", "owed", "unread")  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.listener: Listener | None = None
        self.incoming = bytearray()
        self.is_ended = False  # the guest sends nothing more
        self.outgoing = bytearray()
        self.ends = False  # after `outgoing` nothing more comes; cleared when that is said
        self.credit = WINDOW  # bytes that the guest still takes
        self.unread = 0  # bytes for which the guest got no new credit
        self.owed = 0  # bytes for which it is to get credit
        self.is_over = False  # nothing is sent any more but what is queued
        self.is_queued = False


class Streams:
    """The streams of a guest. Its driver opens and reads them; the router takes their frames."""

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}
        self._ready: deque[Stream] = deque()
        self._closing: dict[int, None] = {}  # streams that are gone, of which the guest is still to be told
        self._opening = bytearray()  # CONNECT frames, one of each number at most
        self._datagrams: deque[bytes] = deque()
        self._busy: set[int] = set()  # numbers of ours that the guest has not given back
        self._accepted: list[tuple[Stream, IPv4Address, int]] = []
        self._queries: list[tuple[bytes, bytes]] = []
        self._heard: dict[Stream, None] = {}

    def __len__(self) -> int:
        """Return the number of open streams."""
        return len(self._streams)

    @property
    def held(self) -> int:
        """The number of buffered bytes."""
        streams = self._streams.values()
        return len(self._opening) + sum(len(stream.incoming) + len(stream.outgoing) for stream in streams)

    # From the guest

    def from_guest(self, kind: int, number: int, payload: bytes) -> None:
        """Process a frame of a stream. A frame for an unknown stream is dropped."""
        stream = self._streams.get(number)
        if number == messages.DATAGRAMS:
            if kind == messages.DATA_OUT and len(payload) > _ENDPOINT.size and len(self._queries) < _DATAGRAMS_MAX:
                self._queries.append((payload[: _ENDPOINT.size], payload[_ENDPOINT.size :]))
        elif kind == messages.ACCEPTED:
            self._accept(stream, number, payload)
        elif kind == messages.CLOSED:
            self._busy.discard(number)
            if stream is not None:
                self._lose(stream)
        elif stream is None or stream.is_over:
            pass
        elif kind == messages.DATA_OUT:
            self._take(stream, payload)
        elif kind == messages.CREDIT and len(payload) == 4:
            stream.credit = min(WINDOW, stream.credit + messages.number(payload))
            self.queue(stream)

    def take_accepted(self) -> list[tuple[Stream, IPv4Address, int]]:
        """Return new streams, with the place that was connected to."""
        accepted, self._accepted = self._accepted, []
        return [item for item in accepted if item[0].number in self._streams]

    def tell_listeners(self, is_late: Callable[[], bool]) -> None:
        """Tell listeners what has come: once, however many frames it took, because each time they read all of it.

        Those that have no turn before `is_late` get it at the next call.
        """
        while self._heard and not is_late():
            stream = next(iter(self._heard))
            del self._heard[stream]
            if stream.listener is not None:
                stream.listener.heard()

    def hear_again(self, stream: Stream) -> None:
        """Tell a stream's listener once more, after the others: it has not read all."""
        self._heard[stream] = None

    @property
    def is_behind(self) -> bool:
        """Return whether some listeners are still to be told."""
        return bool(self._heard)

    def take_queries(self) -> list[tuple[bytes, bytes]]:
        """Return datagrams with their senders."""
        queries, self._queries = self._queries, []
        return queries

    def _accept(self, stream: Stream | None, number: int, payload: bytes) -> None:
        last = messages.ACCEPTED_FIRST + messages.ACCEPTED_MAX
        if stream is not None:
            self._lose(stream)
        elif (
            messages.ACCEPTED_FIRST <= number < last and number not in self._closing and len(payload) == _ENDPOINT.size
        ):
            address, port = _ENDPOINT.unpack(payload)
            stream = self._streams[number] = Stream(number)
            self._accepted.append((stream, IPv4Address(address), port))

    def _take(self, stream: Stream, payload: bytes) -> None:
        stream.unread += len(payload)
        if stream.unread > WINDOW or stream.is_ended:
            self._lose(stream)
            return
        stream.is_ended = not payload
        stream.incoming += payload
        self._heard[stream] = None

    def _lose(self, stream: Stream) -> None:
        listener, stream.listener = stream.listener, None
        self.close(stream, at_once=True)
        if listener is not None:
            listener.lost()

    # To the guest

    def connect(self, port: int) -> Stream | None:
        """Open a stream to a program at 127.0.0.1 and `port` in the guest; None if there are too many."""
        first = messages.CONNECTED_FIRST
        for number in range(first, first + messages.CONNECTED_MAX):
            if number not in self._streams and number not in self._busy:
                self._busy.add(number)
                stream = self._streams[number] = Stream(number)
                self._opening += frame(messages.CONNECT, _ENDPOINT.pack(IPv4Address("127.0.0.1").packed, port), number)
                return stream
        return None

    def taken(self, stream: Stream, count: int) -> None:
        """Remove `count` bytes from the start of what a stream has received; the guest gets credit for them."""
        del stream.incoming[:count]
        self.grant(stream, count)

    def grant(self, stream: Stream, count: int) -> None:
        """Give credit for `count` bytes that were removed already."""
        stream.owed += count
        if stream.owed >= _GRANT_BYTES:
            self.queue(stream)

    def send(self, stream: Stream, data: bytes) -> None:
        """Queue data for the guest; the driver looks at `outgoing` before it reads more."""
        stream.outgoing += data
        self.queue(stream)

    def end(self, stream: Stream) -> None:
        """Say after all queued data that nothing more comes."""
        stream.ends = True
        self.queue(stream)

    def close(self, stream: Stream, *, at_once: bool = False) -> None:
        """Close a stream after all queued data has been sent, or at once."""
        if stream.is_over and not at_once:
            return
        stream.is_over, stream.listener = True, None
        stream.incoming.clear()
        if at_once:
            stream.outgoing.clear()
            if self._streams.pop(stream.number, None) is not None:
                self._closing[stream.number] = None
        self.queue(stream)

    def reply(self, to: bytes, data: bytes) -> None:
        """Queue a datagram; it is lost if too many wait."""
        if len(self._datagrams) < _DATAGRAMS_MAX:
            self._datagrams.append(to + data)

    def queue(self, stream: Stream) -> None:
        """Give a stream its turn to send, if it has something."""
        if not stream.is_queued and stream.number in self._streams:
            stream.is_queued = True
            self._ready.append(stream)

    def to_guest(self, limit: int) -> bytearray:
        """Return frames for the guest, about `limit` bytes at most. Streams take turns."""
        out, self._opening = self._opening, bytearray()
        for number in self._closing:
            out += frame(messages.CLOSE, b"\1", number)
        self._closing.clear()
        while self._datagrams and len(out) < limit:
            out += frame(messages.DATA_IN, self._datagrams.popleft(), messages.DATAGRAMS)
        while self._ready and len(out) < limit:
            stream = self._ready.popleft()
            stream.is_queued = False
            if self._streams.get(stream.number) is stream:
                self._send(stream, out)
        return out

    def _send(self, stream: Stream, out: bytearray) -> None:
        if stream.owed and not stream.is_ended:
            out += frame_number(messages.CREDIT, stream.owed, stream.number)
            stream.unread -= stream.owed
            stream.owed = 0
        count = min(len(stream.outgoing), stream.credit, _PIECE_BYTES)
        if count:
            out += frame(messages.DATA_IN, bytes(stream.outgoing[:count]), stream.number)
            del stream.outgoing[:count]
            stream.credit -= count
        if stream.outgoing:
            if stream.credit:
                self.queue(stream)
        elif stream.ends:
            stream.ends = False
            out += frame(messages.DATA_IN, b"", stream.number)
        if stream.is_over and not stream.outgoing:
            out += frame(messages.CLOSE, b"", stream.number)
            del self._streams[stream.number]
        elif count and stream.listener is not None:
            stream.listener.drained()
