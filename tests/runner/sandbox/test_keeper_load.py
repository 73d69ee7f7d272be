"""Orders while a guest with --allow loads its keeper: how long until the guest has them, and how much memory that takes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from rootdisk import records
from rootdisk.network.rules import parse_rule
from runner.channel import messages
from runner.channel.messages import Decoder, frame, frame_number
from runner.network.audit import Audit
from runner.network.proxy import Proxy
from runner.network.rules import Rules
from tests.support.keepers import Running
from tests.support.network import Inside, Server
from tests.support.processes import resident_bytes

STREAMS = 200
ORDERS = 200
MAX_S = 0.1
MORE_MAX_BYTES = 160 << 20
EXEC = frame(messages.EXEC, records.pack([("arg", b"true")]))


class Slow(Inside):
    """Every second of its programs reads nothing; those that read give credit at once."""

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if number % 2:
            super()._take(kind, number, b"" if kind == messages.CLOSE else payload[:0])
            self.send(frame_number(messages.CREDIT, len(payload), number))


def load(lanes: list[socket.socket], told: int, telling: int) -> None:
    """Serve without end, and be the guest's side: 200 connections that download, and a flood of frames for none."""
    server = Server(bytes(256 << 20), keeps=True)
    os.write(telling, b"%d\n" % server.port)
    os.read(told, 1)
    inside = Slow(lanes)
    for _ in range(STREAMS):
        inside.say(inside.open("198.18.0.1", server.port), b"go")
    while len(server.seen) < STREAMS:
        inside.hear()
    os.write(telling, b"loaded\n")
    flood = frame(messages.CLOSED, b"", messages.ACCEPTED_FIRST + 500) * 2000
    while True:
        for _ in range(8):
            inside.hear(0.01)
        inside.send(flood)


@contextlib.contextmanager
def loading(lanes: list[socket.socket], theirs: list[socket.socket]) -> Iterator[tuple[int, Callable[[], None]]]:
    """Yield the port of a server, and what starts the load on the keeper; both are another process."""
    (told, tell), (hear, telling) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            for sock in theirs:
                sock.close()
            load(lanes, told, telling)
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
def test_orders_do_not_wait_behind_a_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """200 downloads, half of them of programs that do not read, and a flood of frames: an order is passed on within 100 ms."""
    pairs = [socket.socketpair() for _ in range(messages.LANES)]
    lanes, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    with loading(lanes, theirs) as (port, begin):
        for sock in lanes:
            sock.close()
        rules = Rules([parse_rule(f"app.test:{port}")], {"app.test": ip_address("127.0.0.1")})
        running = Running(tmp_path, lanes=theirs, proxy=lambda: Proxy(rules, Audit(lambda _: None)))
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
        finally:
            running.close()
    with capsys.disabled():
        for what, found in (("idle", idle), ("loaded", loaded)):
            print(f"\n{what}: median {statistics.median(found) * 1000:.1f} ms, at most {max(found) * 1000:.1f} ms")
        print(f"{more >> 20} MiB more memory")
    assert statistics.median(loaded) < MAX_S
    assert more < MORE_MAX_BYTES
