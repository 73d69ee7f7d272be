"""Frames: what guest, keeper and clients say to one another; docs/layout-1.md, "The channel". Pure.

What comes in is hostile: lengths are bounded, unknown frames are errors, and nothing is buffered without bound.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from runner.errors import RootdiskError

# From the guest.
READY, STDOUT, STDERR, EXIT, ERROR, LOG = 1, 2, 3, 4, 5, 6
# To the guest; CREDIT goes both ways.
STDIN, RESIZE, SIGNAL, EXEC, ACK, STOP, CREDIT = 16, 17, 18, 19, 20, 21, 22
# To the keeper only: end the machine now; say how it ends.
KILL, WAIT = 32, 33

FROM_GUEST = frozenset({READY, STDOUT, STDERR, EXIT, ERROR, LOG, CREDIT})
FROM_CLIENT = frozenset({STDIN, RESIZE, SIGNAL, EXEC, STOP, CREDIT, KILL, WAIT})

HEADER = struct.Struct("<IBBH")
PAYLOAD_MAX = 1 << 20
WINDOW = 256 << 10  # bytes of one session's data under way in each direction


class GuestError(RootdiskError):
    """The guest, or what we hear of it, says why the sandbox failed."""


def frame(kind: int, payload: bytes = b"", session: int = 0) -> bytes:
    """One frame."""
    return HEADER.pack(len(payload), kind, 0, session) + payload


def frame_number(kind: int, number: int, session: int = 0) -> bytes:
    """A frame whose payload is a le32."""
    return frame(kind, struct.pack("<I", number & 0xFFFF_FFFF), session)


def number(payload: bytes) -> int:
    """The le32 that is all of `payload`."""
    if len(payload) != 4:
        raise GuestError("the guest does not keep to the channel's protocol")
    return int.from_bytes(payload, "little")


class Decoder:
    """Bytes in, frames out: (kind, session, payload)."""

    def __init__(self, kinds: Collection[int] = FROM_GUEST) -> None:
        self._data = bytearray()
        self._kinds = kinds

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """The frames that are whole with `data`; GuestError on what the other side would never send."""
        self._data += data
        while len(self._data) >= HEADER.size:
            length, kind, zero, session = HEADER.unpack_from(self._data)
            if length > PAYLOAD_MAX or zero or kind not in self._kinds:
                raise GuestError("the guest does not keep to the channel's protocol", "was it built by this rootdisk?")
            end = HEADER.size + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[HEADER.size : end])
            del self._data[:end]
            yield kind, session, payload
