"""Sandboxes for asyncio. What may take long (a start, a program, an end) waits in the event loop; work on files is done in threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from rootdisk.errors import RootdiskError
from runner.api import collected, starting
from runner.api.async_process import AsyncProcess
from runner.api.collected import OUTPUT_MAX_BYTES, Collected
from runner.api.known import FILE_MAX_BYTES, FOLLOW_S
from runner.api.life import Life
from runner.api.process import KILLED_S
from runner.api.results import LogPiece, Remarks, Result
from runner.api.sandbox import Sandbox
from runner.api.starting import Started
from runner.api.store import Place
from runner.api.texts import seconds_of
from runner.channel import messages
from runner.sandbox import liveness, orders
from runner.sandbox.state import STOP_S

if TYPE_CHECKING:
    from runner.api.options import BootOptions

THREADS = 32  # apart from asyncio's own, which are few: a guest that stands still may hold one while a file is copied

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "sandboxes")


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(_threads(), functools.partial(function, *args, **kwargs))


class AsyncSandbox:
    """A sandbox, as `Sandbox`, for asyncio."""

    def __init__(self, inner: Sandbox) -> None:
        """Do not call this: use `boot`, `get` or `list`."""
        self._inner = inner
        self._listening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"AsyncSandbox({self.name!r})"

    @property
    def name(self) -> str:
        """The name of the sandbox."""
        return self._inner.name

    @classmethod
    async def boot(
        cls,
        artifact: str = "",
        command: Sequence[str] = (),
        *,
        store: Place | None = None,
        **options: Unpack[BootOptions],
    ) -> AsyncSandbox:
        """Boot a sandbox and return when its program has started; see `Sandbox.boot`. A cancelled boot leaves nothing."""
        future = asyncio.ensure_future(_in_thread(starting.boot, artifact, command, store, options))
        try:
            inner = Sandbox(*await asyncio.shield(future))
        except asyncio.CancelledError:
            future.add_done_callback(_discard)
            raise
        sandbox = cls(inner)
        try:
            await sandbox._listen(lambda: sandbox._life.is_ready)
        except BaseException:
            inner.drop()
            raise
        inner.settle()
        return sandbox

    @classmethod
    async def get(cls, name: str, *, store: Place | None = None) -> AsyncSandbox:
        """Return the sandbox `name`; BadInput if there is none."""
        return cls(await _in_thread(Sandbox.get, name, store=store))

    @classmethod
    async def list(cls, *, all: bool = False, store: Place | None = None) -> list[AsyncSandbox]:
        """Return the sandboxes that run; with `all`, also those that have ended or cannot be read."""
        return [cls(inner) for inner in await _in_thread(Sandbox.list, all=all, store=store)]

    async def __aenter__(self) -> AsyncSandbox:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End a sandbox that this object has booted; see `Sandbox.close`."""
        await _in_thread(self._inner.close)

    async def inspect(self) -> dict[str, Any]:
        """Return what `runner inspect NAME` shows: state, options, ports, what the sandbox uses."""
        return await _in_thread(self._inner.inspect)

    async def is_running(self) -> bool:
        """Return whether the sandbox runs now."""
        return await _in_thread(lambda: self._inner.is_running)

    async def exec(
        self,
        command: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | Sequence[str] = (),
        workdir: str = "",
        user: str = "",
        timeout: float | None = None,
        max_output: int = OUTPUT_MAX_BYTES,
    ) -> Result:
        """Run a program to its end and return its exit status and output; see `Sandbox.exec`.

        The program is killed if this call is cancelled.
        """
        data, timeout, max_output = collected.checked(input, timeout, max_output)
        process = await self.spawn(command, env=env, workdir=workdir, user=user, stdin=data is not None)
        async with process:
            output = Collected(process.exchange, data, max_output)
            try:
                async with asyncio.timeout(timeout):
                    await process.push()
                    while not output.is_full and (piece := await process.read()):
                        output.add(*piece)
            except TimeoutError:
                assert timeout is not None
                await _kill(process)
                raise output.timed_out(timeout) from None
            except asyncio.CancelledError:
                process._abandon()
                raise
            if output.is_full:
                await _kill(process)
            return output.result()

    async def exec_detached(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | Sequence[str] = (),
        workdir: str = "",
        user: str = "",
    ) -> None:
        """Start a program that goes on by itself, and return when it runs; see `Sandbox.exec_detached`."""
        await _in_thread(self._inner.exec_detached, command, env=env, workdir=workdir, user=user)

    async def spawn(
        self,
        command: Sequence[str],
        *,
        stdin: bool = False,
        env: Mapping[str, str] | Sequence[str] = (),
        workdir: str = "",
        user: str = "",
    ) -> AsyncProcess:
        """Start a program and return it with its streams. Without `stdin` its standard input is empty."""
        request = collected.request_of(command, env, workdir, user, stdin=stdin)
        process = AsyncProcess(await _in_thread(self._inner.connect), request, has_input=stdin)
        await process.push()
        return process

    async def read_file(self, path: str, *, max_bytes: int = FILE_MAX_BYTES) -> bytes:
        """Return the content of a file in the sandbox; BadInput if it is larger than `max_bytes`, or not a file."""
        return await _in_thread(self._inner.read_file, path, max_bytes=max_bytes)

    async def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the sandbox; its directory must exist. Text is written as UTF-8."""
        await _in_thread(self._inner.write_file, path, data, mode=mode)

    async def copy_in(self, source: Place, target: str, *, follow_link: bool = False) -> Remarks:
        """Copy a file or directory of this machine into the sandbox; see `Sandbox.copy_in`."""
        return await _in_thread(self._inner.copy_in, source, target, follow_link=follow_link)

    async def copy_out(self, source: str, target: Place, *, follow_link: bool = False) -> Remarks:
        """Copy a file or directory out of the sandbox; see `Sandbox.copy_out`."""
        return await _in_thread(self._inner.copy_out, source, target, follow_link=follow_link)

    async def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
        console: bool = False,
    ) -> AsyncIterator[LogPiece]:
        """Yield what the sandbox's program has written; see `Sandbox.logs`."""
        batches = self._inner.log(console=console, tail=tail, since=since, until=until)
        async for piece in _followed(batches, follow=follow):
            yield piece

    async def connections(
        self, *, follow: bool = False, tail: int | None = None, since: float | None = None, until: float | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield what a sandbox with `allow` has reached, and what was refused; see `Sandbox.connections`."""
        batches = await _in_thread(self._inner.reached, tail=tail, since=since, until=until)
        async for row in _followed(batches, follow=follow):
            yield row

    async def stop(self, timeout: float = STOP_S) -> None:
        """Ask the program to end, wait `timeout` seconds, then kill it. Return when the sandbox has ended."""
        await _in_thread(self._inner.stop, timeout)

    async def kill(self, signal: int | str | None = None) -> None:
        """End the sandbox at once, or send its program `signal`, such as 1 or "HUP"."""
        await _in_thread(self._inner.kill, signal)

    async def wait(self, timeout: float | None = None) -> int:
        """Wait until the sandbox ends and return the exit status of its program; errors as of `Sandbox.wait`."""
        timeout = seconds_of(timeout, "timeout")
        try:
            async with asyncio.timeout(timeout):
                if self._inner.is_tied:
                    async with self._listening:
                        await self._listen(lambda: self._life.status is not None)
                    assert self._life.status is not None
                    return self._life.status
                return await self._wait_as_visitor()
        except TimeoutError:
            raise starting.still_runs(self.name, timeout) from None

    async def start(self) -> None:
        """Start a kept sandbox again, with the options that it was booted with; see `Sandbox.start`."""
        await _in_thread(self._inner.begin)
        try:
            await self._listen(lambda: self._life.is_ready)
        except BaseException:
            self._inner.drop()
            raise
        self._inner.settle()

    async def restart(self, timeout: float = STOP_S) -> None:
        """Stop a kept sandbox as `stop` does, if it runs, and start it again as `start` does."""
        if (await _in_thread(self._inner.find)).running:
            await self.stop(timeout)
        await self.start()

    async def rename(self, new: str) -> None:
        """Give the sandbox another name; BadInput if another sandbox has it."""
        await _in_thread(self._inner.rename, new)

    async def trim(self) -> int:
        """Give the host back what files in the sandbox no longer use; see `Sandbox.trim`."""
        return await _in_thread(self._inner.trim)

    async def stats(self) -> dict[str, Any]:
        """Return what the sandbox uses now; see `Sandbox.stats`."""
        return await _in_thread(self._inner.stats)

    async def snapshot(self, name: str, *, without_memory: bool = False) -> None:
        """Save the running sandbox, which goes on, as the snapshot `name`; see `Sandbox.snapshot`."""
        await _in_thread(self._inner.snapshot, name, without_memory=without_memory)

    async def remove(self, *, force: bool = False) -> None:
        """Remove a sandbox that has ended; with `force`, end it first."""
        await _in_thread(self._inner.remove, force=force)

    @property
    def _life(self) -> Life:
        assert self._inner.life is not None
        return self._inner.life

    async def _listen(self, is_enough: Callable[[], bool]) -> None:
        sock = self._inner.sock
        if is_enough():
            return
        if sock is None:
            raise starting.is_closed(self.name)
        sock.setblocking(False)
        while not is_enough():
            try:
                data = await asyncio.get_running_loop().sock_recv(sock, 4096)
            except ConnectionError:
                data = b""
            self._life.receive(data)

    async def _wait_as_visitor(self) -> int:
        with contextlib.ExitStack() as stack:
            state = await _in_thread(self._inner.find)
            sock = await _in_thread(orders.watch_end, state, stack)
            while sock is not None:
                sock.setblocking(False)
                decoder = messages.Decoder()
                while data := await _received(sock):
                    if (status := orders.end_of(decoder, data)) is not None:
                        return status
                await asyncio.sleep(FOLLOW_S)  # a sandbox that starts again lets go of its clients before that
                sock = await _in_thread(orders.watch_end, state, stack)
            while liveness.is_running(state):
                await asyncio.sleep(FOLLOW_S)
            return await _in_thread(lambda: orders.kept_status(self._inner.find()))


async def _followed(batches: Iterator[tuple[list[T], bool]], *, follow: bool) -> AsyncIterator[T]:
    """Yield what is in the batches, as the function of this name in known.py does."""
    while (batch := await _in_thread(next, batches, None)) is not None:
        for item in batch[0]:
            yield item
        if not (follow and batch[1]):
            return
        await asyncio.sleep(FOLLOW_S)


async def _received(sock: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(sock, 4096)
    except ConnectionError:
        return b""


def _discard(future: asyncio.Future[Started]) -> None:
    """End a sandbox whose boot was cancelled while it was prepared."""
    if not future.cancelled() and future.exception() is None:
        future.result().sock.close()


async def _kill(process: AsyncProcess) -> None:
    with contextlib.suppress(TimeoutError, RootdiskError):
        async with asyncio.timeout(KILLED_S):
            await process.kill()
            await process.wait()
