"""Sandboxes for blocking callers. Threads may use several sandboxes at once, and one sandbox too."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

from rootdisk.errors import BadInput
from runner.api import collected, starting
from runner.api.collected import OUTPUT_MAX_BYTES
from runner.api.known import KnownSandbox
from runner.api.life import Life
from runner.api.process import Process, run_to_end
from runner.api.results import Result
from runner.api.store import Place, open_store
from runner.api.texts import name_of, seconds_of
from runner.api.waiting import events_of
from runner.sandbox import lookup, orders
from runner.sandbox.state import STOP_S
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.api.options import BootOptions

_END_S = 30.0  # for the files of a sandbox to go after its machine has ended
_POLL_S = 0.05


class Sandbox(KnownSandbox):
    """A sandbox: a virtual machine with a disk of its own.

    `boot` starts one, `get` returns one by its name. As a context manager it ends at the end of the block. A sandbox that
    `boot` has started also ends when this program does, however that happens, unless it was booted with `detach=True`.
    """

    def __init__(self, name: str, store: Store, sock: socket.socket | None = None, life: Life | None = None) -> None:
        """Do not call this: use `boot`, `get` or `list`."""
        super().__init__(name, store)
        self.sock = sock  # to the keeper, as its main client; for AsyncSandbox too, like `life`
        self.life = life
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Sandbox({self.name!r})"

    @classmethod
    def boot(
        cls,
        artifact: str = "",
        command: Sequence[str] = (),
        *,
        store: Place | None = None,
        **options: Unpack[BootOptions],
    ) -> Sandbox:
        """Boot a sandbox and return when its program has started.

        Args:
            artifact: Reference of the artifact, as for `runner boot`: registry/repository:tag or oci:DIR:TAG. With
                `from_snapshot` there is none.
            command: Run this instead of the image's command; ["sleep", "infinity"] waits for `exec`.
            store: Directory of the store; by default the user's.
            options: Those of `runner boot`, with `_` for `-`.

        Raises:
            BadInput: An option is wrong.
            RootdiskError: The artifact cannot be fetched, or the sandbox does not start.
        """
        sandbox = cls(*starting.boot(artifact, command, store, options))
        sandbox._await_start()
        return sandbox

    @classmethod
    def get(cls, name: str, *, store: Place | None = None) -> Sandbox:
        """Return the sandbox `name`; BadInput if there is none."""
        opened = open_store(store)
        return cls(lookup.find_any(opened, name_of(name, "name")).name, opened)

    @classmethod
    def list(cls, *, all: bool = False, store: Place | None = None) -> list[Sandbox]:
        """Return the sandboxes that run; with `all`, also those that have ended or cannot be read."""
        opened = open_store(store)
        sandboxes = (row for row in lookup.all_of(opened) if not row.name.startswith("."))
        return [cls(row.name, opened) for row in sandboxes if row.running or all]

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End a sandbox that this object has booted: its program is stopped if the sandbox is kept, else killed.

        A sandbox from `get`, or booted with `detach=True`, goes on.
        """
        if self.sock is None:
            return
        with contextlib.suppress(BadInput):  # it has ended already
            state = self.find()
            failed = orders.stop_all([state], STOP_S) if state.spec.keep else orders.end_all([state])
            for err in failed.values():
                raise err
        self.drop()
        self._await_removal()

    def exec(
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
        """Run a program to its end and return its exit status and output.

        Args:
            command: Program and arguments, a list.
            input: Goes to its standard input.
            env: Variables in addition to those of the sandbox.
            workdir: Working directory; by default the image's.
            user: User, or user:group; by default the image's.
            timeout: Seconds after which the program is killed.
            max_output: Bytes of output after which the program is killed.

        Raises:
            TimedOut: It did not end in time; the error has the output until then.
            RootdiskError: It has written too much, or the sandbox has ended.
        """
        data, seconds, limit = collected.checked(input, timeout, max_output)
        process = self.spawn(command, env=env, workdir=workdir, user=user, stdin=data is not None)
        with process:
            return run_to_end(process, data, seconds, limit)

    def exec_detached(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | Sequence[str] = (),
        workdir: str = "",
        user: str = "",
    ) -> None:
        """Start a program that goes on by itself, and return when it runs. Its output is dropped.

        Raises:
            RootdiskError: It cannot be run.
        """
        request = collected.request_of(command, env, workdir, user, stdin=False)
        with Process(self.connect(), request, has_input=False, is_detached=True) as process:
            collected.check_started(run_to_end(process, None, None, OUTPUT_MAX_BYTES))

    def spawn(
        self,
        command: Sequence[str],
        *,
        stdin: bool = False,
        env: Mapping[str, str] | Sequence[str] = (),
        workdir: str = "",
        user: str = "",
    ) -> Process:
        """Start a program and return it with its streams. Without `stdin` its standard input is empty."""
        request = collected.request_of(command, env, workdir, user, stdin=stdin)
        return Process(self.connect(), request, has_input=stdin)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the sandbox ends and return the exit status of its program.

        Raises:
            TimedOut: It still runs after `timeout` seconds.
            RootdiskError: It has failed; the message has the reason.
        """
        timeout = seconds_of(timeout, "timeout")
        if self.life is not None and self.life.is_tied:
            with self._lock:
                self._listen(lambda life: life.status is not None, timeout)
            assert self.life.status is not None
            return self.life.status
        with contextlib.ExitStack() as stack:
            state = self.find()
            sock = orders.watch_end(state, stack)
            if sock is not None:
                deadline = None if timeout is None else time.monotonic() + timeout
                if not events_of(sock, select.POLLIN, deadline):
                    raise starting.still_runs(self.name, timeout)
                sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                return orders.status_of(self.store, state, sock)
            except TimeoutError:
                raise starting.still_runs(self.name, timeout) from None

    def start(self) -> None:
        """Start a kept sandbox again, with the options that it was booted with. It goes on when this program ends.

        Raises:
            BadInput: It runs.
            RootdiskError: It does not start.
        """
        self.begin()
        self._await_start()

    def restart(self, timeout: float = STOP_S) -> None:
        """Stop a kept sandbox as `stop` does, if it runs, and start it again as `start` does."""
        if self.find().running:
            self.stop(timeout)
        self.start()

    def begin(self) -> None:
        """Start the keeper of a kept sandbox; its program has not started yet."""
        started = starting.again(self.store, self.find())
        self.sock, self.life = started.sock, started.life

    # Shared with AsyncSandbox

    @property
    def is_tied(self) -> bool:
        """Return whether the sandbox ends with this object's connection."""
        return self.life is not None and self.life.is_tied

    def _await_start(self) -> None:
        """Wait until the program has started."""
        try:
            self._listen(lambda life: life.is_ready, None)
        except BaseException:
            self.drop()
            raise
        self.settle()

    def settle(self) -> None:
        """Take no part in a detached sandbox after its start."""
        if not self.is_tied:
            self.drop()

    def drop(self) -> None:
        """Close the connection, which ends a sandbox that is tied to it."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _listen(self, is_enough: Callable[[Life], bool], timeout: float | None) -> None:
        """Listen to the keeper until it has said enough."""
        assert self.life is not None
        if is_enough(self.life):
            return
        if self.sock is None:
            raise starting.is_closed(self.name)
        starting.listen(starting.Started(self.name, self.store, self.sock, self.life), is_enough, timeout)

    def _await_removal(self) -> None:
        """Wait until the files of a sandbox that is not kept are gone."""
        deadline = time.monotonic() + _END_S
        with contextlib.suppress(BadInput):
            while not self.find().spec.keep and time.monotonic() < deadline:
                time.sleep(_POLL_S)
