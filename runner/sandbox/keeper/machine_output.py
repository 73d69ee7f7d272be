"""The output of a machine and its helpers: it goes to logs, and says how the guest's kernel or a helper has ended."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from typing import IO

from runner.machine import console
from runner.machine.model import Helper, Vm, how_ended
from runner.sandbox.keeper.watched import Source, Watched, receive
from runner.sandbox.output.logs import Log

_READ_BYTES = 64 << 10
_LOOK_S = 1.0  # for a process to end after it has closed its output


class MachineOutput:
    """The console of a guest and the output of its machine's processes, with a log for each."""

    def __init__(self, vm: Vm, console_log: Log, logs: Mapping[IO[bytes], Log], watched: Watched) -> None:
        """`logs` are those of what the machine's processes write."""
        self._vm = vm
        self._logs: dict[Source, Log] = {vm.console: console_log}
        for source, log in logs.items():
            self._logs[source] = log
        self._watched = watched
        self.has_spoken = False  # something came from the console
        self._line = b""  # the last, perhaps unfinished, line of the console
        self._init_spoke = False
        self._power: int | None = None  # how a program has ended the machine, as its console says

    @property
    def sources(self) -> tuple[Source, ...]:
        """Return everything that is read."""
        return tuple(self._logs)

    def read(self, source: Source) -> Helper | None:
        """Read what has arrived. If the output of a helper has ended, return the helper."""
        data = receive(source, _READ_BYTES)
        if data == b"":
            self._watched.watch(source, 0)
            return next((helper for helper in self._vm.helpers if helper.process.stdout is source), None)
        if data:
            if source is self._vm.console:
                self._hear(data)
            self.log(source, data)
        return None

    def log(self, source: Source, data: bytes) -> None:
        """Write to the log of a source."""
        self._logs[source].write(data)

    def note(self, text: str) -> None:
        """Write a line of ours to the console's log: it explains what the guest's kernel says."""
        self.log(self._vm.console, f"runner: {text}\n".encode())

    def take_power(self, *, is_ready: bool) -> int | None:
        """Return once how the guest's kernel says that it is off. `is_ready` tells whether its program has started."""
        how, self._power = self._power, None
        # An init that cannot start its program says so, and ends the machine itself.
        return how if is_ready or not self._init_spoke else None

    def loss(self, helper: Helper) -> str | None:
        """Return what there is to say about a helper that has closed its output; None if it still runs."""
        try:
            how = how_ended(helper.process.wait(_LOOK_S))
        except subprocess.TimeoutExpired:
            return None
        source = helper.process.stdout
        last_line = console.tail(self._logs[source].path)[-1:] if source and how.startswith("exit status") else []
        return ": ".join((f"{helper.what} is lost", "its server ended", *filter(None, [how, *last_line])))

    def drain(self) -> None:
        """Read the rest after the machine has ended: it often has the reason."""
        self._vm.console.settimeout(1)
        for source in self._logs:
            with contextlib.suppress(OSError):
                while data := receive(source, _READ_BYTES):
                    self.log(source, data)

    def _hear(self, data: bytes) -> None:
        self.has_spoken = True
        text = self._line + data
        self._power = console.power_of(text) or self._power
        self._init_spoke |= b"rootdisk: " in text
        self._line = text.rpartition(b"\n")[2][-console.LINE_MAX :]
