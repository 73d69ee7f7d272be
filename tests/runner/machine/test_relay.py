"""Ports of IPv6 addresses, relayed to 127.0.0.1 by a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from runner.machine import ports, relay
from runner.machine.model import Forward
from runner.options.values import forwards
from tests.support.commands import ROOT
from tests.support.mounts import needs_root
from tests.support.ports import free_port
from tests.support.waiting import until


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")


def test_addresses() -> None:
    assert forwards(["[::1]:8080:80", "[2001:DB8:0::5]:53:53/udp", "127.0.0.1:8080:80"]) == (
        Forward("tcp", "::1", 8080, 80),
        Forward("udp", "2001:db8::5", 53, 53),
        Forward("tcp", "127.0.0.1", 8080, 80),
    )
    for text in (
        "::1:8080:80",
        "[::1]8080:80",
        "[::g]:1:1",
        "[127.0.0.1]:1:1",
        "[]:1:1",
        "010.0.0.1:1:1",
        "[::1%lo]:1:1",
    ):
        with pytest.raises(BadInput, match="--publish"):
            forwards([text])


@pytest.mark.parametrize(
    "texts", [["1:1", "1:2"], ["0.0.0.0:1:1", "127.0.0.1:1:2"], ["[::]:1:1", "[::1]:1:2"], ["[::1]:1:1", "[0::1]:1:2"]]
)
def test_the_same_port_twice(texts: list[str]) -> None:
    with pytest.raises(BadInput, match="published twice"):
        forwards(texts)


def test_other_ports() -> None:
    assert len(forwards(["1:1", "1:1/udp", "[::1]:1:1", "0.0.0.0:2:1", "[::]:2:1"])) == 5


@pytest.fixture
def relayed() -> Iterator[tuple[Forward, Forward]]:
    """A TCP and a UDP port of ::1, and what answers behind them."""
    given = tuple(Forward(kind, "::1", free_port("::1", number), 7) for kind, number in (("tcp", 1), ("udp", 2)))
    left, helper = relay.serve(given, None)
    assert helper is not None
    try:
        with contextlib.ExitStack() as stack:
            for inner in left:
                assert (inner.address, inner.guest) == ("127.0.0.1", 7)
                stack.enter_context(_echo(inner))
            yield given[0], given[1]
    finally:
        helper.process.kill()
        helper.process.wait()


@contextlib.contextmanager
def _echo(inner: Forward) -> Iterator[None]:
    kind = socket.SOCK_STREAM if inner.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((inner.address, inner.host))

        def answer() -> None:
            with contextlib.suppress(OSError):
                if inner.protocol == "udp":
                    while True:
                        data, client = sock.recvfrom(100)
                        sock.sendto(data.upper(), client)
                sock.listen()
                while True:
                    connection, _ = sock.accept()
                    with connection:
                        data = b""
                        while piece := connection.recv(1 << 16):
                            data += piece
                        connection.sendall(data.upper())

        threading.Thread(target=answer, daemon=True).start()
        yield


@needs_ipv6
def test_it_carries_both_ways(relayed: tuple[Forward, Forward]) -> None:
    tcp, udp = relayed
    for _ in range(3):
        with socket.create_connection(("::1", tcp.host), 30) as sock:
            sent = b"x" * 300_000
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while piece := sock.recv(1 << 16):
                got += piece
        assert got == sent.upper()
    for word in (b"one", b"two"):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(("::1", udp.host))

            def answered(client: socket.socket = client, word: bytes = word) -> bool:
                client.send(word)
                with contextlib.suppress(TimeoutError):
                    return client.recv(100) == word.upper()
                return False

            until(answered)
    with pytest.raises(BadInput, match="in use") as found:
        ports.check([tcp])
    assert f"--publish [::1]:{tcp.host}:7" in str(found.value)


@needs_ipv6
@needs_root
def test_it_runs_as_the_machine_s_user_and_ends_with_the_keeper() -> None:
    """Whether or not that user can read this Python; and the kernel is told again whose end is its own."""
    program = (
        "import os, sys, time\n"
        "from rootdisk.system.process import User\n"
        "from runner.machine import relay\n"
        "from runner.machine.model import Forward\n"
        f"_, helper = relay.serve((Forward('tcp', '::1', {free_port('::1')}, 7),), User(65534, 65534, ()))\n"
        "print(helper.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    keeper = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT)
    assert keeper.stdout is not None
    status = Path("/proc", keeper.stdout.readline().decode().strip(), "status")
    until(lambda: "\nUid:\t65534\t" in status.read_text())
    keeper.kill()
    keeper.wait()
    keeper.stdout.close()
    until(lambda: not status.exists() or "\nState:\tZ" in status.read_text())


@needs_ipv6
def test_without_ipv6_ports_there_is_no_process() -> None:
    given = (Forward("tcp", "127.0.0.1", 1, 1),)
    assert relay.serve(given, None) == (given, None)
