"""The server name in the first message of TLS. Pure.

RFC 8446 section 4.1.2 and RFC 6066 section 3.
"""

from __future__ import annotations

from rootdisk.network.hosts import Host, Refused, parse_host

HELLO_MAX = 64 << 10
_RECORDS_MAX = 64  # of one message; clients use one to five
ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"  # a fatal alert
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME = 22, 1, 0


def server_name(data: bytes | bytearray) -> Host | None:
    """Return the server name of a ClientHello at the start of `data`; None if more is to come.

    Raises:
        Refused: It is not a ClientHello, or has no server name.
    """
    message, at = bytearray(), 0
    for _ in range(_RECORDS_MAX):
        head = data[at : at + 5]
        if head[:1] not in (b"", bytes([_HANDSHAKE])) or head[1:2] not in (b"", b"\x03"):
            raise Refused("not TLS")
        if len(head) < 5:
            break
        length = int.from_bytes(head[3:5], "big")
        if not 0 < length <= 1 << 14:
            raise Refused("not TLS")
        message += data[at + 5 : at + 5 + length]
        if message[:1] != bytes([_CLIENT_HELLO]) and message:
            raise Refused("not TLS")
        size = 4 + int.from_bytes(message[1:4], "big") if len(message) >= 4 else HELLO_MAX
        if size > HELLO_MAX:
            raise Refused("a first message of TLS that is too long")
        if len(message) >= size and len(message) >= 4:
            return _name(bytes(message[4:size]))
        at += 5 + length
        if at >= len(data):
            break
    else:
        raise Refused("a first message of TLS in too many records")
    if len(data) >= 2 * HELLO_MAX:
        raise Refused("a first message of TLS that is too long")
    return None


class _Reader:
    """Bytes with lengths before them."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        """Take that many bytes."""
        if count > len(self.data):
            raise Refused("a broken first message of TLS")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def vector(self, width: int) -> bytes:
        """Take bytes with their length, which has `width` bytes, before them."""
        return self.take(int.from_bytes(self.take(width), "big"))


def _name(hello: bytes) -> Host:
    reader = _Reader(hello)
    reader.take(2 + 32)
    for width in (1, 2, 1):  # session, cipher suites, compression methods
        reader.vector(width)
    extensions = _Reader(reader.vector(2) if reader.data else b"")
    names: list[bytes] = []
    while extensions.data:
        kind, value = int.from_bytes(extensions.take(2), "big"), _Reader(extensions.vector(2))
        if kind == _SERVER_NAME:
            entries = _Reader(value.vector(2))
            while entries.data:
                kind_of_name, name = entries.take(1), entries.vector(2)
                names += [name] if kind_of_name == b"\0" else []
    if not names:
        raise Refused("TLS without a server name")
    if len(names) > 1:
        raise Refused("TLS with two server names")
    return parse_host(names[0].decode("ascii", "replace"))
