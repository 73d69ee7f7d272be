"""Orders while a guest with --allow loads its keeper: how long until the guest has them, and how much memory that takes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from rootdisk import records
from rootdisk.network.rules import parse_rule
from runner.channel import messages
from runner.channel.messages import Decoder, frame, frame_number
from runner.network.audit import Audit
from runner.network.insertion import SecretInsertion
from runner.network.proxy import DNS_PORT, Proxy
from runner.network.rules import Rules
from runner.network.secrets import Secrets
from tests.support.keepers import Running
from tests.support.network import Inside, Server
from tests.support.processes import resident_bytes
from tests.support.secrets import secret

STREAMS = 200
ORDERS = 200
MAX_S = 0.1
VALUE, SHOWN = "s3cr3t-0123456789abcdef", "placeholder-abcdefghijk"
MORE_MAX_BYTES = 160 << 20
EXEC = frame(messages.EXEC, records.pack([("arg", b"true")]))


class Slow(Inside):
    """Every second of its programs reads nothing; those that read give credit at once."""

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if number % 2:
            super()._take(kind, number, b"" if kind == messages.CLOSE else payload[:0])
            self.send(frame_number(messages.CREDIT, len(payload), number))


class Both(Server):
    """Answers while it reads."""

    def _serve(self, sock: socket.socket, seen: bytearray) -> None:
        with contextlib.suppress(OSError), sock:
            seen += sock.recv(1)
            threading.Thread(target=self._send, args=(sock,), daemon=True).start()
            while sock.recv(1 << 16):
                pass

    def _send(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(self._answer)


class Busy(Inside):
    """Its programs send as fast as they may."""

    def __init__(self, lanes: Sequence[socket.socket]) -> None:
        super().__init__(lanes)
        self.credit: dict[int, int] = {}

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == messages.CREDIT:
            self.credit[number] += messages.number(payload)
        elif kind == messages.DATA_IN:
            self.send(frame_number(messages.CREDIT, len(payload), number))


def downloads(lanes: Sequence[socket.socket], server: Server) -> Iterator[None]:
    """200 connections that download, and a flood of frames for none."""
    inside = Slow(lanes)
    for _ in range(STREAMS):
        inside.say(inside.open("198.18.0.1", server.port), b"go")
    while len(server.seen) < STREAMS:
        inside.hear()
    flood = frame(messages.CLOSED, b"", messages.ACCEPTED_FIRST + 500) * 2000
    while True:
        yield
        for _ in range(8):
            inside.hear(0.01)
        inside.send(flood)


def trifles(lanes: Sequence[socket.socket], server: Server) -> Iterator[None]:
    """Requests and answers in chunks of one byte, of a host with a secret, and questions of DNS that are none."""
    inside = Busy(lanes)
    for number in [inside.open("198.18.0.1", server.port) for _ in range(20)]:
        inside.credit[number] = messages.WINDOW - 1000
        inside.say(number, HEAD % server.port)
    while len(server.seen) < 20:
        inside.hear()
    while True:
        yield
        for number, room in inside.credit.items():
            count = min(room // len(CHUNK), 10_000)
            inside.credit[number] -= count * len(CHUNK)
            inside.say(number, CHUNK * count)
        question = inside.open(port=DNS_PORT)
        inside.say(question, bytes(100_000))
        inside.send(frame(messages.CLOSED, b"", question))
        inside.last_number = messages.ACCEPTED_FIRST + inside.last_number % 100 + 30
        for _ in range(100):
            inside.hear(0.01)


CHUNK = b"1\r\nX\r\n"
HEAD = b"POST / HTTP/1.1\r\nHost: app.test:%d\r\nTransfer-Encoding: chunked\r\n\r\n"
Load = Callable[[Sequence[socket.socket], Server], Iterator[None]]
ANSWERS: dict[Load, bytes] = {
    downloads: bytes(256 << 20),
    trifles: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK * 2_000_000,
}


def load(what: Load, lanes: list[socket.socket], told: int, telling: int) -> None:
    """Be server and guest without end."""
    server = Server(ANSWERS[what], keeps=True) if what is downloads else Both(ANSWERS[what])
    os.write(telling, b"%d\n" % server.port)
    os.read(told, 1)
    steps = what(lanes, server)
    next(steps)
    os.write(telling, b"loaded\n")
    for _ in steps:
        pass


@contextlib.contextmanager
def loading(
    what: Load, lanes: list[socket.socket], theirs: list[socket.socket]
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Yield the port of a server, and what starts the load on the keeper; both are another process."""
    (told, tell), (hear, telling) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            for sock in theirs:
                sock.close()
            load(what, lanes, told, telling)
        finally:
            os._exit(1)

    def begin() -> None:
        os.write(tell, b"x")
        assert os.read(hear, 100) == b"loaded\n"

    try:
        yield int(os.read(hear, 100)), begin
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in (told, tell, hear, telling):
            os.close(fd)


def times(running: Running) -> list[float]:
    """Seconds from an order of a client to its frame at the machine, each of a new client as `exec` is one."""
    found, decoder = [], Decoder(messages.TO_GUEST)
    for _ in range(ORDERS):
        with running.connect() as client:
            start = time.monotonic()
            client.sendall(EXEC)
            number = 0
            while not number:
                for kind, session, _ in decoder.feed(running.guest.recv(1 << 16)):
                    number = session if kind == messages.EXEC else number
            found.append(time.monotonic() - start)
            running.guest.sendall(frame_number(messages.EXIT, 0, number))
            while client.recv(1000):
                pass
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("what", [downloads, trifles])
def test_orders_do_not_wait_behind_a_load(what: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """EXEC and STOP are passed on within 100 ms, each of them. `runner logs` reads files and asks no keeper."""
    pairs = [socket.socketpair() for _ in range(messages.LANES)]
    lanes, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    with loading(what, lanes, theirs) as (port, begin):
        for sock in lanes:
            sock.close()
        rules = Rules([parse_rule(f"app.test:{port}")], {"app.test": ip_address("127.0.0.1")})
        secrets = Secrets((secret(VALUE, SHOWN, port, is_tls=False),), "", b"") if what is trifles else None
        insertion = SecretInsertion(secrets, None) if secrets is not None else None
        running = Running(tmp_path, lanes=theirs, proxy=lambda: Proxy(rules, Audit(lambda _: None), (), insertion))
        try:
            for sock in theirs:
                sock.close()
            running.guest.sendall(
                frame(messages.READY, (3).to_bytes(4, "little") + messages.HAS_STREAMS.to_bytes(4, "little"))
            )
            idle, before = times(running), resident_bytes(running.pid)
            begin()
            loaded, more = times(running), resident_bytes(running.pid) - before
            assert running.lives()
            start = time.monotonic()
            running.client.sendall(frame_number(messages.STOP, 15))
            decoder, kinds = Decoder(messages.TO_GUEST), set[int]()
            while messages.STOP not in kinds:
                kinds |= {kind for kind, _, _ in decoder.feed(running.guest.recv(1 << 16))}
            stop = time.monotonic() - start
        finally:
            running.close()
    with capsys.disabled():
        for name, found in (("idle", idle), ("loaded", loaded), ("stop", [stop])):
            print(f"\n{name}: median {statistics.median(found) * 1000:.1f} ms, at most {max(found) * 1000:.1f} ms")
        print(f"{more >> 20} MiB more memory")
    assert max(*loaded, stop) < MAX_S
    assert more < MORE_MAX_BYTES
