"""A program in a sandbox with its streams, for blocking callers."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from rootdisk.errors import RootdiskError, TimedOut
from rootdisk.parsing.ids import parse_signal
from runner.api.collected import Collected
from runner.api.results import Result
from runner.api.texts import bytes_of, seconds_of
from runner.api.waiting import events_of
from runner.channel.exchange import Exchange

RECEIVE_BYTES = 256 << 10
KILLED_S = 10.0  # for a guest to report the end of a program after SIGKILL
SIGKILL = 9


class Process:
    """A running program in a sandbox. Iterate over it for its output, as (stream, bytes) with "stdout" or "stderr".

    A program that writes much stops until its output is read. When the connection is closed, the program gets SIGHUP.
    """

    def __init__(
        self, sock: socket.socket, request: bytes, *, has_input: bool = True, is_detached: bool = False
    ) -> None:
        self._sock = sock
        self.exchange = Exchange(request, has_input=has_input, is_detached=is_detached)
        self._output: deque[tuple[str, bytes]] = deque()
        self.push()

    @property
    def status(self) -> int | None:
        """The exit status; None if the end of the program has not been seen yet."""
        return self.exchange.status

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.exchange.close()
        self._sock.close()

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while (piece := self.read()) is not None:
            yield piece

    def read(self, timeout: float | None = None) -> tuple[str, bytes] | None:
        """Return the next output as (stream, bytes); None at the end.

        Raises:
            TimedOut: Nothing came within `timeout` seconds. The program goes on.
        """
        deadline = _deadline(timeout)
        while not self._output and self.status is None:
            self._receive(deadline)
        if not self._output:
            return None
        piece = self._output.popleft()
        self.exchange.taken(len(piece[1]))
        self.push()
        return piece

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Write to the program's standard input, which `stdin=True` has opened. Wait until the guest has accepted it.

        Raises:
            TimedOut: The program has not read enough within `timeout` seconds.
        """
        deadline = _deadline(timeout)
        self.exchange.write(bytes_of(data, "data"))
        self.push()
        while self.exchange.needs_input_taken:
            self._receive(deadline)

    def close_input(self) -> None:
        """End the program's standard input."""
        self.exchange.close_input()
        self.push()

    def signal(self, number: int | str) -> None:
        """Send a signal, such as 15, "TERM" or "SIGTERM"."""
        self.exchange.signal(parse_signal(str(number)))
        self.push()

    def kill(self) -> None:
        """Send SIGKILL."""
        self.signal(SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the program ends and return its exit status. Output that was not read is dropped.

        Raises:
            TimedOut: It did not end within `timeout` seconds. The program goes on.
        """
        deadline = _deadline(timeout)
        while self.status is None:
            self._drop()
            self._receive(deadline)
        self._drop()
        return self.status

    def _abandon(self) -> None:
        """Kill the program, and wait for nothing: the caller was interrupted."""
        self.exchange.signal(SIGKILL)
        with contextlib.suppress(OSError):
            self._sock.send(self.exchange.out, socket.MSG_DONTWAIT)

    def _drop(self) -> None:
        self.exchange.taken(sum(len(data) for _, data in self._output))
        self._output.clear()
        self.push()

    def _receive(self, deadline: float | None) -> None:
        """Wait until something comes."""
        self.exchange.check_open()
        if not events_of(self._sock, select.POLLIN, deadline):
            raise TimedOut("the program in the sandbox has not answered in time")
        self._output += self.exchange.receive(_received(self._sock))
        self.push()

    def push(self) -> None:
        """Send what is queued, and receive meanwhile: the keeper reads only while it can pass data on."""
        out = self.exchange.out
        if out:
            self.exchange.check_open()
        while out:
            if events_of(self._sock, select.POLLIN | select.POLLOUT) & ~select.POLLOUT:
                self._output += self.exchange.receive(_received(self._sock))
            else:
                try:
                    del out[: self._sock.send(out, socket.MSG_DONTWAIT)]
                except BlockingIOError:
                    continue
                except OSError:  # receiving says why
                    out.clear()
            if self.status is not None:
                out.clear()


def _deadline(timeout: float | None) -> float | None:
    seconds = seconds_of(timeout, "timeout")
    return None if seconds is None else time.monotonic() + seconds


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(RECEIVE_BYTES)
    except ConnectionError:
        return b""


def run_to_end(process: Process, input: bytes | None, timeout: float | None, max_output: int) -> Result:
    """Return exit status and output of a program that was just started; see `Sandbox.exec`."""
    output = Collected(process.exchange, input, max_output)
    deadline = _deadline(timeout)
    try:
        process.push()
        while not output.is_full and (
            piece := process.read(None if deadline is None else max(0.0, deadline - time.monotonic()))
        ):
            output.add(*piece)
    except TimedOut:
        assert timeout is not None
        _kill(process)
        raise output.timed_out(timeout) from None
    except BaseException:
        process._abandon()
        raise
    if output.is_full:
        _kill(process)
    return output.result()


def _kill(process: Process) -> None:
    with contextlib.suppress(TimedOut, RootdiskError):
        process.kill()
        process.wait(KILLED_S)
