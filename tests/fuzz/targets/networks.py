"""What a guest says to its proxy, and what the host of a secret answers: HTTP, SOCKS, TLS, DNS."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

from rootdisk.errors import BadInput
from rootdisk.network.hosts import Refused
from rootdisk.network.rules import parse_rule
from runner.network.dialogues import ByProxy
from runner.network.echoes import Echoes
from runner.network.guards import HttpGuard, TlsGuard, Unusable
from runner.network.http import Requests
from runner.network.names import Names
from runner.network.responses import Responses
from runner.network.rules import Rules
from tests.fuzz.target import Target

_VALUE, _SHOWN = "s3cr3t/value", "placeholder-"
_NAME = b"\x00\x00\x00\x0d\x00\x0b\x00\x00\x08app.test"  # the extension that says the server name


def _hello() -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00" + len(_NAME).to_bytes(2, "big") + _NAME
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def _dialogue(data: bytes) -> None:
    """A whole connection: the request for it, and what follows, in pieces of a size that the first byte says."""
    step, incoming, dialogue = 1 + data[0] % 64 if data else 1, bytearray(), ByProxy()
    try:
        pieces = [data[at : at + step] for at in range(1, len(data), step)]
        while pieces and not dialogue.hear(incoming):
            incoming += pieces.pop(0)
        if dialogue.target is None:
            return
        guard = dialogue.guard()
        for piece in pieces:
            incoming += piece
            while guard is not None and guard.feed(incoming, 1 << 16):
                pass
    except Refused as err:
        raise BadInput(str(err)) from err


def _guards(data: bytes) -> None:
    """The first message of TLS, and requests on port 80."""
    try:
        TlsGuard("app.test").feed(bytearray(data), 1 << 16)
    except Refused:
        guard, incoming = HttpGuard(Requests("app.test", 80)), bytearray(data)
        try:
            while guard.feed(incoming, 1 << 16):
                pass
        except Refused as err:
            raise BadInput(str(err)) from err


def _answers(data: bytes) -> None:
    """No answer has the secret, however it is cut."""
    echoes = Echoes([(_VALUE, _SHOWN)])
    whole, cut = Responses(deque([b"GET", b"HEAD"]), echoes), Responses(deque([b"GET", b"HEAD"]), echoes)
    try:
        out = whole.feed(data)
        pieces = b"".join(cut.feed(data[at : at + 7]) for at in range(0, len(data), 7))
    except Unusable as err:
        raise BadInput(str(err)) from err
    assert _VALUE.encode() not in out
    assert _VALUE.encode() not in pieces


def _question(data: bytes) -> None:
    names = Names(Rules([parse_rule("app.test"), parse_rule("*.wild.test")]))
    answer = names.answer(data)
    if answer is None:
        raise BadInput("no question")
    assert answer[:2] == data[:2]


def _requests() -> Iterator[bytes]:
    host = b"Host: app.test\r\n"
    yield b"\x20CONNECT app.test:443 HTTP/1.1\r\n\r\n" + _hello()
    yield b"\x05GET http://app.test/a?b HTTP/1.1\r\n" + host + b"\r\n"
    yield b"\x3fPOST http://app.test:8080/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nA: b\r\n\r\n"
    yield b"\x09\x05\x01\x00\x05\x01\x00\x03\x08app.test" + struct.pack(">H", 443) + _hello()
    yield b"\x09\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"
    yield b"\x20CONNECT [fd00::1]:80 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: [fd00::1]\r\n\r\n"


def _after() -> Iterator[bytes]:
    yield _hello()
    yield b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\nPUT /x HTTP/1.1\r\nHost: app.test:80\r\nContent-Length: 2\r\n\r\nok"


def _responses() -> Iterator[bytes]:
    value = _VALUE.encode()
    yield (
        b"HTTP/1.1 200 "
        + value
        + b"\r\nA: "
        + value
        + b"\r\nContent-Length: 12\r\n\r\n"
        + value
        + b"HTTP/1.1 200 OK\r\n\r\n"
    )
    yield b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ns3cr3\r\n7;x\r\nt/value\r\n0\r\nT: u\r\n\r\n"
    yield b"HTTP/1.0 200 OK\r\n\r\n" + value * 2


def _questions() -> Iterator[bytes]:
    for name in (b"\x03app\x04test\x00", b"\x01x\x04wild\x04test\x00", b"\x00"):
        yield b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name + b"\x00\x01\x00\x01"


_WORDS = (b"\r\n", b"HTTP/1.1", b"Content-Length: ", b"Transfer-Encoding: chunked", b"Host: ", b"http://", b"app.test")

TARGETS = {
    "proxy-requests": Target(_dialogue, _requests, _WORDS, few=200),
    "proxy-guards": Target(_guards, _after, _WORDS, few=200),
    "proxy-answers": Target(_answers, _responses, (*_WORDS, _VALUE.encode()), few=200),
    "proxy-names": Target(_question, _questions, (b"\x03app\x04test\x00", b"\x00\x01\x00\x01"), few=200),
}
