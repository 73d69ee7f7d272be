"""A program in a sandbox with its streams, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType

from rootdisk.parsing.ids import parse_signal
from runner.api.process import RECEIVE_BYTES, SIGKILL
from runner.api.texts import bytes_of
from runner.channel.exchange import Exchange


class AsyncProcess:
    """A running program in a sandbox. Iterate over it for its output, as (stream, bytes) with "stdout" or "stderr".

    A program that writes much stops until its output is read. When the connection is closed, the program gets SIGHUP.
    """

    def __init__(
        self, sock: socket.socket, request: bytes, *, has_input: bool = True, is_detached: bool = False
    ) -> None:
        """Do not call this: use `AsyncSandbox.spawn`."""
        sock.setblocking(False)
        self._sock = sock
        self.exchange = Exchange(request, has_input=has_input, is_detached=is_detached)
        self._output: deque[tuple[str, bytes]] = deque()
        self._sending = asyncio.Lock()

    @property
    def status(self) -> int | None:
        """The exit status; None if the end of the program has not been seen yet."""
        return self.exchange.status

    async def __aenter__(self) -> AsyncProcess:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.exchange.close()
        self._sock.close()

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        while (piece := await self.read()) is not None:
            yield piece

    async def read(self) -> tuple[str, bytes] | None:
        """Return the next output as (stream, bytes); None at the end."""
        while not self._output and self.status is None:
            await self._receive()
        if not self._output:
            return None
        piece = self._output.popleft()
        self.exchange.taken(len(piece[1]))
        await self.push()
        return piece

    async def write(self, data: bytes) -> None:
        """Write to the program's standard input, which `stdin=True` has opened. Wait until the guest has accepted it."""
        self.exchange.write(bytes_of(data, "data"))
        await self.push()
        while self.exchange.needs_input_taken:
            await self._receive()

    async def close_input(self) -> None:
        """End the program's standard input."""
        self.exchange.close_input()
        await self.push()

    async def signal(self, number: int | str) -> None:
        """Send a signal, such as 15, "TERM" or "SIGTERM"."""
        self.exchange.signal(parse_signal(str(number)))
        await self.push()

    async def kill(self) -> None:
        """Send SIGKILL."""
        await self.signal(SIGKILL)

    async def wait(self) -> int:
        """Wait until the program ends and return its exit status. Output that was not read is dropped."""
        while await self.read() is not None:
            pass
        assert self.status is not None
        return self.status

    def _abandon(self) -> None:
        """Kill the program, and wait for nothing: the task was cancelled."""
        self.exchange.signal(SIGKILL)
        with contextlib.suppress(OSError):
            self._sock.send(self.exchange.out)

    async def _receive(self) -> None:
        """Wait until something comes."""
        self.exchange.check_open()
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, RECEIVE_BYTES)
        except ConnectionError:
            data = b""
        self._output += self.exchange.receive(data)
        await self.push()

    async def push(self) -> None:
        """Send what is queued."""
        async with self._sending:
            while out := bytes(self.exchange.out):
                self.exchange.check_open()
                self.exchange.out.clear()
                try:
                    await asyncio.get_running_loop().sock_sendall(self._sock, out)
                except ConnectionError:  # receiving says why
                    return
