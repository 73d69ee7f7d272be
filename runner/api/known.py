"""Sandboxes by their names: all that needs neither their start nor their programs."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from rootdisk.errors import BadInput
from rootdisk.parsing.ids import parse_signal
from runner.api.results import LogBatch, LogPiece, Remarks
from runner.api.store import Place
from runner.api.texts import bytes_of, count_of, name_of, path_of, seconds_of, shown, text_of
from runner.channel import messages
from runner.sandbox import directory, lookup, orders
from runner.sandbox.liveness import not_running
from runner.sandbox.output import lines
from runner.sandbox.state import STOP_S, State
from runner.sandbox.usage import sandbox_document, usage
from runner.store.store import Store

FILE_MAX_BYTES = 64 << 20
FOLLOW_S = 0.1
T = TypeVar("T")


class KnownSandbox:
    """A sandbox by its name, in a store. `Sandbox` adds how it is started, and its programs."""

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self.store = store

    def inspect(self) -> dict[str, Any]:
        """Return what `runner inspect NAME` shows: state, options, ports, what the sandbox uses."""
        return sandbox_document(self.store, self.name)

    @property
    def is_running(self) -> bool:
        """Return whether the sandbox runs now."""
        try:
            return lookup.find_any(self.store, self.name).running
        except BadInput:
            return False

    def stats(self) -> dict[str, Any]:
        """Return what the sandbox uses now, as `runner stats --json`; BadInput if it does not run.

        `processor_s` counts from its start: two calls tell how busy it is.
        """
        state = self.find()
        used = usage(state) if state.running else None
        if used is None:
            raise not_running(state)
        return used.to_json(None)

    def read_file(self, path: str, *, max_bytes: int = FILE_MAX_BYTES) -> bytes:
        """Return the content of a file in the sandbox; BadInput if it is larger than `max_bytes`, or not a file."""
        from runner.channel.copies import contents

        checked, limit = text_of(path, "path"), count_of(max_bytes, "max_bytes")
        with self._connection() as connect:
            return contents.read_file(connect, checked, limit)

    def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the sandbox; its directory must exist. Text is written as UTF-8."""
        from runner.channel.copies import contents

        checked, permissions = text_of(path, "path"), count_of(mode, "mode")
        try:
            raw = data.encode() if isinstance(data, str) else bytes_of(data, "data")
        except UnicodeEncodeError as err:
            raise BadInput("data has half of a surrogate pair", "write bytes") from err
        with self._connection() as connect:
            contents.write_file(connect, checked, raw, permissions)

    def copy_in(self, source: Place, target: str, *, follow_link: bool = False) -> Remarks:
        """Copy a file or directory of this machine into the sandbox, as `runner cp` does.

        Return remarks about single files, such as sockets, that are not copied.
        """
        from runner.channel.copies import command

        remarks: Remarks = []
        with self._connection() as connect:
            command.copy_in(connect, _path(source), text_of(target, "target"), follow=follow_link, tell=remarks.append)
        return remarks

    def copy_out(self, source: str, target: Place, *, follow_link: bool = False) -> Remarks:
        """Copy a file or directory out of the sandbox, as `runner cp` does. Return remarks as `copy_in`."""
        from runner.channel.copies import command

        remarks: Remarks = []
        with self._connection() as connect:
            command.copy_out(connect, text_of(source, "source"), _path(target), follow=follow_link, tell=remarks.append)
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
        yield from _followed(self.log(console=console, tail=tail, since=since, until=until), follow=follow)

    def connections(
        self, *, follow: bool = False, tail: int | None = None, since: float | None = None, until: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield what a sandbox with `allow` has reached, and what was refused, as `runner logs --network --json`.

        The arguments are those of `logs`.

        Raises:
            BadInput: It was booted without `allow`.
        """
        yield from _followed(self.reached(tail=tail, since=since, until=until), follow=follow)

    def stop(self, timeout: float = STOP_S) -> None:
        """Ask the program to end, wait `timeout` seconds, then kill it. Return when the sandbox has ended."""
        for err in orders.stop_all([self.find()], stop_seconds(timeout)).values():
            raise err

    def kill(self, signal: int | str | None = None) -> None:
        """End the sandbox at once, or send its program `signal`, such as 1 or "HUP"."""
        number = None if signal is None else parse_signal(str(signal))
        for err in orders.kill_all([self.find()], number).values():
            raise err

    def rename(self, new: str) -> None:
        """Give the sandbox another name; BadInput if another sandbox has it."""
        from runner.options.values import sandbox_name

        name = sandbox_name(name_of(new, "new"), "new")
        orders.rename(self.store, self.find(), name)
        self.name = name

    def trim(self) -> int:
        """Give the host back what files in the sandbox no longer use. Return by how many bytes its disk takes less.

        Raises:
            RootdiskError: Its root gives nothing back.
        """
        from runner.sandbox.trim import trim

        return trim(self.find())

    def snapshot(self, name: str, *, without_memory: bool = False) -> None:
        """Save the running sandbox, which goes on, as the snapshot `name`: boot others with `from_snapshot`.

        What its programs have in memory is in the snapshot, secrets too. `without_memory` saves the disk alone.

        Raises:
            BadInput: It cannot be saved; the message says what is in the way.
            RootdiskError: It could not be saved. It goes on.
        """
        from runner.options.values import sandbox_name
        from runner.sandbox import snapshot_taking

        snapshot = sandbox_name(name_of(name, "name"), "snapshot")
        snapshot_taking.take(self.store, self.find(), snapshot, has_memory=not without_memory)

    def remove(self, *, force: bool = False) -> None:
        """Remove a sandbox that has ended; with `force`, end it first."""
        sandbox = lookup.find_any(self.store, self.name)
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

    def find(self) -> State:
        """Return the state of the sandbox; BadInput if there is none."""
        return lookup.find(self.store, self.name)

    def log(self, **wanted: Any) -> Iterator[LogBatch]:
        """Yield the batches of a log; see `lines.batches`."""
        for pieces, is_more in lines.batches(self.find(), **_wanted(wanted)):
            kinds = {messages.STDOUT: "stdout", messages.STDERR: "stderr"}
            yield [LogPiece(piece.time, kinds[piece.kind], piece.data) for piece in pieces], is_more

    def reached(self, **wanted: Any) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        """Yield the batches of `connections`; see `audit_log.connections`."""
        from runner.sandbox.output import audit_log  # seldom needed

        return audit_log.connections(self.find(), **_wanted(wanted))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Callable[[], socket.socket]]:
        """Yield what connects to the keeper. The machine of a sandbox that has ended runs meanwhile."""
        from runner.sandbox import starter, visit

        state = self.find()
        with contextlib.nullcontext() if state.running else visit.started(self.store, state, starter.begin):
            yield lambda: orders.connect(state)


def stop_seconds(timeout: float) -> int:
    """Return how long a program has to end, in whole seconds; BadInput if it is not a number, or negative."""
    seconds = seconds_of(timeout, "timeout")
    if seconds is None or not 0 <= seconds < 1e9:
        raise BadInput(f"timeout={shown(timeout)}", "a number of seconds")
    return math.ceil(seconds)


def _wanted(wanted: dict[str, Any]) -> dict[str, Any]:
    """Check which lines are wanted."""
    if wanted.get("tail") is not None:
        wanted["tail"] = count_of(wanted["tail"], "tail")
    return wanted | {key: seconds_of(wanted.get(key), key) for key in ("since", "until")}


def _followed(batches: Iterator[tuple[list[T], bool]], *, follow: bool) -> Iterator[T]:
    """Yield what is in the batches: those that are there, or with `follow` until no more can come."""
    for items, is_more in batches:
        yield from items
        if not (follow and is_more):
            return
        time.sleep(FOLLOW_S)


def _path(path: Place) -> str:
    """Return a path of this machine; `-` would be an archive on a standard stream."""
    text = path_of(path, "path")
    return "./-" if text == "-" else text
