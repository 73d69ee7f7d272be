"""Sandboxes for blocking callers. Threads may use several sandboxes at once, and one sandbox too."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack

from rootdisk.errors import BadInput
from rootdisk.ids import parse_signal
from runner.api import collected, starting
from runner.api.collected import OUTPUT_MAX_BYTES
from runner.api.life import Life
from runner.api.options import BootOptions
from runner.api.process import Process, run_to_end
from runner.api.results import LogBatch, LogPiece, Remarks, Result
from runner.api.store import Place, open_store
from runner.channel import messages
from runner.sandbox import directory, lines, orders, starter, visit
from runner.sandbox.directory import State
from runner.sandbox.state import STOP_S
from runner.sandbox.usage import sandbox_document
from runner.store.store import Store

FILE_MAX_BYTES = 64 << 20
FOLLOW_S = 0.1
_END_S = 30.0  # for the files of a sandbox to go after its machine has ended
_POLL_S = 0.05


class Sandbox:
    """A sandbox: a virtual machine with a disk of its own.

    `boot` starts one, `get` returns one by its name. As a context manager it ends at the end of the block. A sandbox that
    `boot` has started also ends when this program does, however that happens, unless it was booted with `detach=True`.
    """

    def __init__(self, name: str, store: Store, sock: socket.socket | None = None, life: Life | None = None) -> None:
        """Do not call this: use `boot`, `get` or `list`."""
        self.name = name
        self.store = store
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
        return cls(directory.find_any(opened, name).name, opened)

    @classmethod
    def list(cls, *, all: bool = False, store: Place | None = None) -> list[Sandbox]:
        """Return the sandboxes that run; with `all`, also those that have ended or cannot be read."""
        opened = open_store(store)
        sandboxes = (row for row in directory.all_of(opened) if not row.name.startswith("."))
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

    def inspect(self) -> dict[str, Any]:
        """Return what `runner inspect NAME` shows: state, options, ports, what the sandbox uses."""
        return sandbox_document(self.store, self.name)

    @property
    def is_running(self) -> bool:
        """Return whether the sandbox runs now."""
        try:
            return directory.find_any(self.store, self.name).running
        except BadInput:
            return False

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
        process = self.spawn(command, env=env, workdir=workdir, user=user, stdin=input is not None)
        with process:
            return run_to_end(process, input, timeout, max_output)

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
        return Process(self.connect(), request)

    def read_file(self, path: str, *, max_bytes: int = FILE_MAX_BYTES) -> bytes:
        """Return the content of a file in the sandbox; BadInput if it is larger than `max_bytes`, or not a file."""
        from runner.channel.copies import contents

        with self._connection() as connect:
            return contents.read_file(connect, path, max_bytes)

    def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the sandbox; its directory must exist. Text is written as UTF-8."""
        from runner.channel.copies import contents

        with self._connection() as connect:
            contents.write_file(connect, path, data.encode() if isinstance(data, str) else data, mode)

    def copy_in(self, source: Place, target: str, *, follow_link: bool = False) -> Remarks:
        """Copy a file or directory of this machine into the sandbox, as `runner cp` does.

        Return remarks about single files, such as sockets, that are not copied.
        """
        from runner.channel.copies import command

        remarks: Remarks = []
        with self._connection() as connect:
            command.copy_in(connect, _path(source), target, follow=follow_link, tell=remarks.append)
        return remarks

    def copy_out(self, source: str, target: Place, *, follow_link: bool = False) -> Remarks:
        """Copy a file or directory out of the sandbox, as `runner cp` does. Return remarks as `copy_in`."""
        from runner.channel.copies import command

        remarks: Remarks = []
        with self._connection() as connect:
            command.copy_out(connect, source, _path(target), follow=follow_link, tell=remarks.append)
        return remarks

    def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
        console: bool = False,
    ) -> Iterator[LogPiece]:
        """Yield what the sandbox's program has written; with `follow`, until the sandbox ends.

        `tail` is how many lines of what is there are wanted, `since` and `until` are Unix seconds. `console` is the output of the
        guest's kernel instead.
        """
        for pieces, is_more in self.log(console=console, tail=tail, since=since, until=until):
            yield from pieces
            if not (follow and is_more):
                return
            time.sleep(FOLLOW_S)

    def stop(self, timeout: float = STOP_S) -> None:
        """Ask the program to end, wait `timeout` seconds, then kill it. Return when the sandbox has ended."""
        for err in orders.stop_all([self.find()], int(timeout)).values():
            raise err

    def kill(self, signal: int | str | None = None) -> None:
        """End the sandbox at once, or send its program `signal`, such as 1 or "HUP"."""
        number = None if signal is None else parse_signal(str(signal))
        for err in orders.kill_all([self.find()], number).values():
            raise err

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the sandbox ends and return the exit status of its program.

        Raises:
            TimedOut: It still runs after `timeout` seconds.
            RootdiskError: It has failed; the message has the reason.
        """
        if self.life is not None and self.life.is_tied:
            with self._lock:
                self._listen(lambda life: life.status is not None, timeout)
            assert self.life.status is not None
            return self.life.status
        with contextlib.ExitStack() as stack:
            state = self.find()
            sock = orders.watch_end(state, stack)
            if sock is not None:
                sock.settimeout(timeout)
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

    def begin(self) -> None:
        """Start the keeper of a kept sandbox; its program has not started yet."""
        started = starting.again(self.store, self.find())
        self.sock, self.life = started.sock, started.life

    def snapshot(self, name: str, *, without_memory: bool = False) -> None:
        """Save the running sandbox, which goes on, as the snapshot `name`: boot others with `from_snapshot`.

        What its programs have in memory is in the snapshot, secrets too. `without_memory` saves the disk alone.

        Raises:
            BadInput: It cannot be saved; the message says what is in the way.
            RootdiskError: It could not be saved. It goes on.
        """
        from runner.options.values import sandbox_name
        from runner.sandbox import snapshot_taking

        snapshot = sandbox_name(name, "snapshot")
        snapshot_taking.take(self.store, self.find(), snapshot, has_memory=not without_memory)

    def remove(self, *, force: bool = False) -> None:
        """Remove a sandbox that has ended; with `force`, end it first."""
        sandbox = directory.find_any(self.store, self.name)
        directory.check_removable(sandbox, force=force)
        if sandbox.running and not force:
            raise BadInput(f"sandbox {self.name} runs", "stop it, or remove it with force=True")
        for err in orders.end_all([sandbox]).values():
            raise err
        if os.path.lexists(sandbox.folder):
            directory.remove(sandbox)

    def connect(self) -> socket.socket:
        """Connect to the keeper; BadInput if the sandbox does not run."""
        return orders.connect(self.find())

    # Shared with AsyncSandbox

    @property
    def is_tied(self) -> bool:
        """Return whether the sandbox ends with this object's connection."""
        return self.life is not None and self.life.is_tied

    def find(self) -> State:
        """Return the state of the sandbox; BadInput if there is none."""
        return directory.find(self.store, self.name)

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
        assert self.sock is not None
        assert self.life is not None
        starting.listen(starting.Started(self.name, self.store, self.sock, self.life), is_enough, timeout)

    def log(self, **wanted: Any) -> Iterator[LogBatch]:
        """Yield the batches of a log; see `lines.batches`."""
        for pieces, is_more in lines.batches(self.find(), **wanted):
            kinds = {messages.STDOUT: "stdout", messages.STDERR: "stderr"}
            yield [LogPiece(piece.time, kinds[piece.kind], piece.data) for piece in pieces], is_more

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Callable[[], socket.socket]]:
        """Yield what connects to the keeper. The machine of a sandbox that has ended runs meanwhile."""
        state = self.find()
        with contextlib.nullcontext() if state.running else visit.started(self.store, state, starter.begin):
            yield lambda: orders.connect(state)

    def _await_removal(self) -> None:
        """Wait until the files of a sandbox that is not kept are gone."""
        deadline = time.monotonic() + _END_S
        with contextlib.suppress(BadInput):
            while not self.find().spec.keep and time.monotonic() < deadline:
                time.sleep(_POLL_S)


def _path(path: Place) -> str:
    """Return a path of this machine; `-` would be an archive on a standard stream."""
    text = os.fspath(path)
    return "./-" if text == "-" else text
