"""Frames: the messages between guest, keeper and clients; docs/layout-1.md, "The channel". Pure.

What comes in is hostile: lengths are bounded, nothing is buffered without bound, and a frame that breaks the rules is
skipped, so that the frames after it are still read.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from rootdisk.errors import BadInput, RootdiskError

INVALID = 0  # never sent: Decoder.take returns it for a frame that breaks the rules
# From the guest.
READY, STDOUT, STDERR, EXIT, ERROR, LOG, POWER = 1, 2, 3, 4, 5, 6, 7
PAUSED, RESUMED = 8, 9  # the machine can be saved, or why not; it goes on, and asks for the time
ACCEPTED, DATA_OUT, CLOSED = 10, 11, 12  # of streams, through their lanes
# To the guest; CREDIT goes both ways.
STDIN, RESIZE, SIGNAL, EXEC, ACK, STOP, CREDIT, HOLD = 16, 17, 18, 19, 20, 21, 22, 23
RESUME, TIME = 24, 25  # to a saved machine: what differs between sandboxes; the time, le64 seconds and le64 nanoseconds
PAUSE = 26  # stand still, to be saved
CONNECT, DATA_IN, CLOSE = 27, 28, 29  # of streams, through their lanes
# To the keeper only: end the machine now; say how it ends; take another name; an EXEC whose client waits for its start only.
# From the keeper only: something its user should know.
KILL, WAIT, NOTICE, RENAME, EXEC_DETACHED = 32, 33, 34, 35, 36
# To the keeper only: save the machine. It answers PAUSED when it stands still and is saved; RESUME lets it go on, then RESUMED.
SNAPSHOT = 37

FROM_GUEST = frozenset({READY, STDOUT, STDERR, EXIT, ERROR, LOG, POWER, PAUSED, RESUMED, CREDIT})
TO_GUEST = frozenset({STDIN, RESIZE, SIGNAL, EXEC, ACK, STOP, CREDIT, HOLD, RESUME, TIME, PAUSE})
STREAMS_FROM_GUEST = frozenset({ACCEPTED, DATA_OUT, CLOSED, CREDIT})
STREAMS_TO_GUEST = frozenset({CONNECT, DATA_IN, CLOSE, CREDIT})
FROM_KEEPER = FROM_GUEST - {PAUSED, RESUMED} | {NOTICE}
FROM_CLIENT = frozenset(
    {STDIN, RESIZE, SIGNAL, EXEC, STOP, CREDIT, KILL, WAIT, RENAME, EXEC_DETACHED, SNAPSHOT, RESUME}
)
TO_SNAPSHOT = frozenset({PAUSED, RESUMED, ERROR, EXIT})  # from the keeper, to a client that takes one

CHANNEL_VERSION = 3  # the newest known version; 1 has no HOLD, 2 has no POWER
HOLD_VERSION = 2  # of guests that know HOLD
OPTIONS_VERSION = 3  # of guests that know --tmpfs and other options
# What READY says of a guest's init beside its version: bits of a second number.
HAS_STREAMS, HAS_DETACH = 1 << 1, 1 << 2
HAS_PAUSE = 1 << 3  # it can stand still to be saved while its programs run
# Numbers of streams: those that programs of the guest open, and those of the keeper; and datagrams.
ACCEPTED_FIRST, ACCEPTED_MAX = 0x8000, 512
CONNECTED_FIRST, CONNECTED_MAX = 0xC000, 256
DATAGRAMS = 0xFFFF
LANES, STRIPE = 8, 4096  # ports for streams, and bytes through each in its turn
# What POWER says: a program has ended the machine. A reboot is not done, so it counts as a failure.
POWERED_OFF, HALTED, REBOOTED = 1, 2, 3
REBOOTED_STATUS = 129
POWER_WORDS = {
    POWERED_OFF: "the sandbox was powered off from inside",
    HALTED: "the sandbox was halted from inside",
    REBOOTED: "the sandbox was to be rebooted from inside, which ends it; if it was kept: runner start NAME",
}

HEADER = struct.Struct("<IBBH")
TIME_FORMAT = struct.Struct("<QQ")  # seconds since the epoch, nanoseconds
WINDOW = 256 << 10  # bytes of one session's data under way in each direction
PAYLOAD_MAX = WINDOW  # of a frame from the guest, or for it
REQUEST_MAX = 250_000  # of a frame from a client: an EXEC's command and variables are the longest
VIOLATED = "the client has violated the protocol"  # what the keeper says to a client that has


class GuestError(RootdiskError):
    """The sandbox failed; the guest, or its output, gives the reason."""


def frame(kind: int, payload: bytes = b"", session: int = 0) -> bytes:
    """Encode a frame."""
    return HEADER.pack(len(payload), kind, 0, session) + payload


def frame_number(kind: int, number: int, session: int = 0) -> bytes:
    """Encode a frame with a le32 as payload."""
    return frame(kind, struct.pack("<I", number & 0xFFFF_FFFF), session)


def is_number(payload: bytes) -> bool:
    """Return whether `payload` is a le32."""
    return len(payload) == 4


def number(payload: bytes) -> int:
    """Decode a `payload` that is a le32."""
    if not is_number(payload):
        raise broken_rules()
    return int.from_bytes(payload, "little")


def broken_rules() -> GuestError:
    """Return the error for a guest that violates the protocol."""
    return GuestError("the guest does not keep to the channel's protocol", "was it built by this rootdisk?")


def check_request(request: bytes) -> None:
    """Refuse the record file of an EXEC that is too long; BadInput."""
    if len(request) > REQUEST_MAX:
        raise BadInput(
            f"exec: command and variables take {len(request):,} bytes, and {REQUEST_MAX:,} are the most",
            "send long data with exec -i, or copy it with runner cp",
        )


class Decoder:
    """Bytes in, frames out: (kind, session, payload). At most one frame, and what was received with it, is held."""

    def __init__(self, kinds: Collection[int] = FROM_KEEPER, payload_max: int = PAYLOAD_MAX) -> None:
        self._data = bytearray()
        self._kinds = kinds
        self._payload_max = payload_max
        self._skipped = 0  # bytes of a broken frame that are still to come

    def __len__(self) -> int:
        """Return the number of bytes that are held."""
        return len(self._data)

    def add(self, data: bytes) -> None:
        """Add received data."""
        passed = min(self._skipped, len(data))
        self._skipped -= passed
        self._data += memoryview(data)[passed:]

    def next_kind(self) -> int | None:
        """Return the kind of the frame that `take` would return; None if it is not complete."""
        if len(self._data) < HEADER.size:
            return None
        length, kind, zero, _ = HEADER.unpack_from(self._data)
        if length > self._payload_max or zero or kind not in self._kinds:
            return INVALID
        return int(kind) if len(self._data) >= HEADER.size + length else None

    def take(self) -> tuple[int, int, bytes] | None:
        """Return the next complete frame, or None. One that is too long or of an unknown kind is (INVALID, session, b"")."""
        kind = self.next_kind()
        if kind is None:
            return None
        length, _, _, session = HEADER.unpack_from(self._data)
        end = HEADER.size + length
        if kind == INVALID:
            self._skipped = max(0, end - len(self._data))
            del self._data[:end]
            return INVALID, session, b""
        payload = bytes(memoryview(self._data)[HEADER.size : end])
        del self._data[:end]
        return kind, session, payload

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Add `data` and yield the complete frames; GuestError for a frame that breaks the rules."""
        self.add(data)
        while (received := self.take()) is not None:
            if received[0] == INVALID:
                raise broken_rules()
            yield received


def incompatible(version: int, needs: str) -> GuestError | None:
    """Return an error if this runner and a guest's init of this channel version cannot work together.

    `needs` names options that only guests of OPTIONS_VERSION know; "" for none.
    """
    if not 1 <= version <= CHANNEL_VERSION:
        return GuestError(
            f"the disk's init uses channel version {version}; this runner knows 1 to {CHANNEL_VERSION}",
            "use a newer rootdisk, or build the artifact with this one",
        )
    if needs and version < OPTIONS_VERSION:
        return too_old(needs)
    return None


def too_old(needs: str) -> GuestError:
    """Return the error for a guest's init that does not know the options `needs`."""
    return GuestError(
        f"the disk's init comes from an older rootdisk, which does not know {needs}",
        "build the artifact again, or omit the option",
    )
