"""A program's streams over a connection to the keeper, for blocking and asynchronous callers."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable

import pytest

from rootdisk.errors import BadInput, RootdiskError, TimedOut
from runner.api.async_process import AsyncProcess
from runner.api.collected import Collected, request_of
from runner.api.life import Life
from runner.api.process import Process, run_to_end
from runner.api.starting import Started, listen
from runner.channel import messages
from runner.channel.exchange import Exchange
from runner.channel.messages import WINDOW, Decoder, GuestError, frame, frame_number, number

REQUEST = request_of(["cat"], {}, "", "", stdin=True)
BIG = bytes(range(256)) * 5000  # more than a window


def keeper(serve: Callable[[socket.socket], None]) -> tuple[socket.socket, threading.Thread]:
    """A keeper that does what the test says."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs, contextlib.suppress(OSError):
            serve(theirs)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return ours, thread


def cat(sock: socket.socket) -> None:
    """`cat` behind a keeper that refuses what breaks the rules, as ours does."""
    decoder = Decoder(messages.FROM_CLIENT)
    allowed, held, ended = WINDOW, b"", False
    while True:
        data = sock.recv(1 << 16)
        if not data:
            return
        for kind, _, payload in decoder.feed(data):
            if kind == messages.STDIN:
                held += payload
                assert len(held) <= WINDOW
                ended |= not payload
            elif kind == messages.CREDIT:
                allowed += number(payload)
                assert allowed <= WINDOW
            elif kind == messages.SIGNAL:
                sock.sendall(frame_number(messages.EXIT, 128 + number(payload)))
                return
        piece, held = held[:allowed], held[allowed:]
        if piece:
            allowed -= len(piece)
            sock.sendall(frame(messages.STDOUT, piece) + frame_number(messages.CREDIT, len(piece)))
        if ended and not held:
            sock.sendall(frame_number(messages.EXIT, 5))
            return


def test_streams_of_a_blocking_caller() -> None:
    sock, thread = keeper(cat)
    with Process(sock, REQUEST) as process:
        process.write(b"one")
        assert process.read() == ("stdout", b"one")
        with pytest.raises(TimedOut):
            process.read(0.05)
        process.write(b"two")
        process.close_input()
        assert list(process) == [("stdout", b"two")]
        assert process.read() is None
        assert process.wait() == 5
        with pytest.raises(RootdiskError, match="input is closed"):
            process.write(b"more")
    thread.join()


def test_more_than_a_window_at_once() -> None:
    sock, _ = keeper(cat)
    with Process(sock, REQUEST) as process:
        output = Collected(process.exchange, BIG, 1 << 30)
        process.push()
        for piece in process:
            output.add(*piece)
        assert output.result() == (5, BIG, b"")


def test_a_signal_ends_it() -> None:
    sock, _ = keeper(cat)
    with Process(sock, REQUEST) as process:
        process.signal("TERM")
        assert process.wait(60) == 143
    sock, _ = keeper(cat)
    with Process(sock, REQUEST) as process:
        with pytest.raises(TimedOut):
            process.wait(0.05)
        process.kill()
        assert process.wait(60) == 137


def test_too_much_output_is_an_error() -> None:
    exchange = Exchange(REQUEST)
    output = Collected(exchange, None, 5)
    output.add("stdout", b"1234")
    assert not output.is_full
    output.add("stderr", b"56")
    assert output.is_full
    exchange.receive(frame_number(messages.EXIT, 0))
    with pytest.raises(RootdiskError, match="more than 5 bytes"):
        output.result()
    late = output.timed_out(2)
    assert (late.stdout, late.stderr) == (b"1234", b"5")


def test_an_asynchronous_caller_does_not_block_the_loop() -> None:
    async def main() -> None:
        sock, _ = keeper(cat)
        async with AsyncProcess(sock, REQUEST) as process:
            waiting = asyncio.create_task(process.read())
            await asyncio.sleep(0)
            assert not waiting.done()
            await process.write(b"one")
            assert await waiting == ("stdout", b"one")
        sock, _ = keeper(cat)
        async with AsyncProcess(sock, REQUEST) as process:
            output = Collected(process.exchange, BIG, 1 << 30)
            await process.push()
            async for piece in process:
                output.add(*piece)
            assert output.result() == (5, BIG, b"")
        sock, _ = keeper(cat)
        async with AsyncProcess(sock, REQUEST) as process:
            await process.kill()
            assert await process.wait() == 137

    asyncio.run(main())


def test_what_is_not_open() -> None:
    """It was a ValueError about a negative descriptor, and input that nobody reads was dropped without a word."""

    async def asynchronous() -> None:
        sock, _ = keeper(cat)
        async with AsyncProcess(sock, REQUEST, has_input=False) as process:
            with pytest.raises(RootdiskError, match="no input: spawn it with stdin=True"):
                await process.write(b"x")
            await process.close_input()
        for act in (process.read(), process.write(b"x"), process.wait(), process.kill()):
            with pytest.raises(RootdiskError, match=r"closed|no input"):
                await act

    asyncio.run(asynchronous())
    sock, _ = keeper(cat)
    with Process(sock, REQUEST, has_input=False) as blocking:
        with pytest.raises(RootdiskError, match="no input: spawn it with stdin=True"):
            blocking.write(b"x")
        blocking.close_input()
    for call in (blocking.read, blocking.wait, blocking.kill):
        with pytest.raises(RootdiskError, match="is closed"):
            call()


def interrupted(call: Callable[[], object]) -> None:
    """Call it, and interrupt it from another thread."""
    threading.Timer(0.1, _thread.interrupt_main).start()
    call()


def test_an_interrupted_exec_kills_its_program() -> None:
    """The connection's end alone is SIGHUP, which a program may ignore."""
    signals: list[int] = []

    def serve(sock: socket.socket) -> None:
        decoder = Decoder(messages.FROM_CLIENT)
        while data := sock.recv(1 << 16):
            for kind, _, payload in decoder.feed(data):
                if kind == messages.STDIN and payload:
                    _thread.interrupt_main()
                elif kind == messages.SIGNAL:
                    signals.append(number(payload))

    sock, thread = keeper(serve)
    with Process(sock, REQUEST) as process, pytest.raises(KeyboardInterrupt):
        run_to_end(process, b"input", None, 100)
    thread.join()
    assert signals == [9]


@pytest.mark.parametrize("said", [b"", frame(messages.ERROR, b"no \x1b[31mroom"), frame(99, b"")])
def test_a_keeper_that_fails(said: bytes) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.sendall(said)

    sock, _ = keeper(serve)
    with Process(sock, REQUEST) as process, pytest.raises(RootdiskError) as caught:
        process.read()
    assert "\x1b" not in str(caught.value)


def test_a_request_is_bounded() -> None:
    with pytest.raises(BadInput, match="250,000 are the most"):
        Exchange(request_of(["x" * 250_000], {}, "", "", stdin=False))
    with pytest.raises(BadInput, match="no command"):
        request_of([], {}, "", "", stdin=False)


def test_the_life_of_a_sandbox() -> None:
    life = Life(is_tied=True)
    life.receive(frame_number(messages.READY, 3)[:5])
    assert not life.is_ready
    life.receive(frame_number(messages.READY, 3)[5:] + frame_number(messages.EXIT, 4))
    assert (life.is_ready, life.status) == (True, 4)
    for is_tied, data in ((True, frame_number(messages.READY, 3)), (False, b"")):
        life = Life(is_tied=is_tied)
        if data:
            life.receive(data)
        with pytest.raises(RootdiskError, match="keeper was killed"):
            life.receive(b"")
    life = Life(is_tied=True)
    with pytest.raises(RootdiskError, match="not started, status 127: no such file"):
        life.receive(frame(messages.STDERR, b"no such file\n") + frame_number(messages.EXIT, 127))
    life = Life(is_tied=True)
    with pytest.raises(GuestError, match="the kernel panicked"):
        life.receive(frame(messages.ERROR, b"the kernel panicked") + frame_number(messages.EXIT, 125))


@pytest.mark.parametrize("call", ["wait", "read", "start", "write"])
def test_an_interrupt_by_another_thread_ends_a_wait(call: str) -> None:
    """As `ray.cancel` does it: no signal ends the call that waits."""
    ours, theirs = socket.socketpair()
    with theirs, Process(ours, REQUEST) as process:
        waits: dict[str, Callable[[], object]] = {
            "wait": lambda: process.wait(600),
            "read": lambda: process.read(600),
            "write": lambda: process.write(bytes(2 * WINDOW), 600),
            "start": lambda: listen(Started("x", None, ours, Life(is_tied=True)), lambda life: life.is_ready, 600),  # type: ignore[arg-type]
        }
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupted(waits[call])
        assert time.monotonic() - started < 300
