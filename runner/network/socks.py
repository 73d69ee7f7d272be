"""SOCKS version 5, RFC 1928: CONNECT without a password. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from rootdisk.network.hosts import Host, Refused, parse_host

GREETING = b"\x05\x00"  # no authentication
NO_METHOD = b"\x05\xff"
DONE, FAILED, NOT_ALLOWED, UNREACHABLE, CONNECTION_REFUSED, NO_COMMAND = 0, 1, 2, 4, 5, 7


def take_greeting(data: bytearray) -> bool | None:
    """Take the first message. Return whether it offers to continue without a password; None if it is incomplete."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    methods = bytes(data[2 : 2 + data[1]])
    del data[: 2 + len(methods)]
    return b"\0" in methods


def take_request(data: bytearray) -> tuple[int, Host, int] | None:
    """Take the second message. Return command, host and port; None if it is not complete.

    Raises:
        Refused: It is not one.
    """
    if len(data) < 5:
        return None
    if data[0] != 5 or data[3] not in (1, 3, 4):
        raise Refused("not a request of SOCKS 5")
    length = {1: 4, 3: 1 + data[4], 4: 16}[data[3]]
    if len(data) < 6 + length:
        return None
    command, kind, raw = data[1], data[3], bytes(data[4 : 4 + length])
    port = int.from_bytes(data[4 + length : 6 + length], "big")
    del data[: 6 + length]
    if kind == 3:
        name = raw[1:].decode("ascii", "replace")
        host = parse_host(f"[{name}]" if ":" in name else name)
    else:
        host = IPv4Address(raw) if kind == 1 else IPv6Address(raw)
    if not port:
        raise Refused("not a port")
    return command, host, port


def reply(code: int) -> bytes:
    """Return the answer to a request."""
    return bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])
