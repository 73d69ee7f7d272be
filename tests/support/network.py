"""A guest's side of streams, and a server that says what it has seen: the proxy is tested with real sockets and no machine."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from rootdisk.network.rules import parse_rule
from runner.channel import messages
from runner.channel.messages import STRIPE, Decoder, frame, frame_number
from runner.network.audit import Audit
from runner.network.guards import Insertion
from runner.network.proxy import LOCAL, PORT, Proxy
from runner.network.rules import Rules
from runner.sandbox.keeper.watched import Watched

LIMIT_S = 60
KINDS = messages.STREAMS_TO_GUEST


class Inside:
    """A guest's end of its lanes."""

    def __init__(self, lanes: Sequence[socket.socket]) -> None:
        self.lanes = lanes
        self.sent = self.received = 0
        self.decoder = Decoder(KINDS)
        self.inbox: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.closed: set[int] = set()
        self.opened: list[tuple[int, int]] = []  # by the host: number, port
        self.last_number = messages.ACCEPTED_FIRST - 1
        for lane in self.lanes:
            lane.settimeout(0.05)

    def send(self, data: bytes) -> None:
        while data:
            lane = self.lanes[self.sent // STRIPE % len(self.lanes)]
            with contextlib.suppress(TimeoutError):
                count = lane.send(data[: STRIPE - self.sent % STRIPE])
                self.sent += count
                data = data[count:]

    def open(self, address: str = str(LOCAL), port: int = PORT) -> int:
        self.last_number += 1
        number = self.last_number
        self.inbox[number] = bytearray()
        payload = struct.pack("<4sH", ip_address(address).packed, port)
        self.send(frame(messages.ACCEPTED, payload, number))
        return number

    def say(self, number: int, data: bytes) -> None:
        self.send(frame(messages.DATA_OUT, data, number))

    def end(self, number: int) -> None:
        self.say(number, b"")

    def hear(self, seconds: float = 0.05) -> bool:
        """Read what has come; whether anything has."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            lane = self.lanes[self.received // STRIPE % len(self.lanes)]
            try:
                data = lane.recv(STRIPE - self.received % STRIPE)
            except TimeoutError:
                continue
            self.received += len(data)
            self.decoder.add(data)
            while (decoded := self.decoder.take()) is not None:
                self._take(*decoded)
            return True
        return False

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == messages.CONNECT:
            self.opened.append((number, struct.unpack("<4sH", payload)[1]))
            self.inbox[number] = bytearray()
        elif kind == messages.DATA_IN and payload:
            self.inbox.setdefault(number, bytearray()).extend(payload)
            if number != messages.DATAGRAMS:
                self.send(frame_number(messages.CREDIT, len(payload), number))
        elif kind == messages.DATA_IN:
            self.ended.add(number)
        elif kind == messages.CLOSE:
            self.closed.add(number)
            self.send(frame(messages.CLOSED, b"", number))

    def until(self, number: int, text: bytes) -> bytes:
        """What has come, as soon as `text` is in it."""
        limit = time.monotonic() + LIMIT_S
        while text not in self.inbox[number]:
            assert time.monotonic() < limit, bytes(self.inbox[number])
            assert number not in self.closed, bytes(self.inbox[number])
            self.hear()
        return bytes(self.inbox[number])

    def rest(self, number: int) -> bytes:
        """All that comes until the stream is at its end."""
        limit = time.monotonic() + LIMIT_S
        while number not in self.ended and number not in self.closed:
            assert time.monotonic() < limit, bytes(self.inbox[number])
            self.hear()
        return bytes(self.inbox[number])

    def ask(self, request: bytes, address: str = str(LOCAL), port: int = PORT) -> bytes:
        """The whole answer to what a program sends."""
        number = self.open(address, port)
        self.say(number, request)
        answer = self.rest(number)
        self.end(number)
        return answer


class Guest(Inside):
    """The same, with a proxy in a thread."""

    def __init__(
        self,
        allow: Sequence[str],
        hosts: dict[str, str] | None = None,
        published: Sequence[tuple[socket.socket, int]] = (),
        secrets: Insertion | None = None,
    ) -> None:
        pairs = [socket.socketpair() for _ in range(messages.LANES)]
        super().__init__([ours for ours, _ in pairs])
        self.lines: list[bytes] = []
        own = {name: ip_address(text) for name, text in (hosts or {}).items()}
        rules = Rules([parse_rule(text) for text in allow], own)
        self.proxy = Proxy(rules, Audit(self.lines.append), published, secrets)
        self._watched = Watched()
        self._ends = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self.proxy.begin(self._watched.watch, [theirs for _, theirs in pairs])
        self._watched.watch(self._woken, 1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wake.send(b"x")  # as READY does

    def _run(self) -> None:
        while not self._ends.is_set():
            at = self.proxy.next_time
            ready = self._watched.wait(None if at is None else max(0.0, at - time.monotonic()))
            if self._woken in ready:
                self._woken.recv(64)
            self.proxy.carry(ready, is_ready=True)

    def close(self) -> None:
        self._ends.set()
        self._wake.send(b"x")
        self._thread.join(LIMIT_S)
        self.proxy.close()
        for lane in self.lanes:
            lane.close()


class Server:
    """Takes connections on the host's loopback; answers each with what `answer` says, and keeps what it has seen."""

    def __init__(self, answer: bytes = b"", *, keeps: bool = False) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.seen: list[bytearray] = []
        self._answer = answer
        self._keeps = keeps
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def bytes_seen(self) -> bytes:
        return b"".join(map(bytes, self.seen))

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                seen = bytearray()
                self.seen.append(seen)
                threading.Thread(target=self._serve, args=(sock, seen), daemon=True).start()

    def _serve(self, sock: socket.socket, seen: bytearray) -> None:
        with contextlib.suppress(OSError), sock:
            while data := sock.recv(1 << 16):
                first = not seen
                seen += data
                if first and self._answer:
                    sock.sendall(self._answer)
                    if not self._keeps:
                        return

    def close(self) -> None:
        self.listener.close()


@contextlib.contextmanager
def serving(answer: bytes = b"", *, keeps: bool = False) -> Iterator[Server]:
    server = Server(answer, keeps=keeps)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def guest(
    allow: Sequence[str], hosts: dict[str, str] | None = None, published: Sequence[tuple[socket.socket, int]] = ()
) -> Iterator[Guest]:
    running = Guest(allow, hosts, published)
    try:
        yield running
    finally:
        running.close()
