"""Output of a program in memory, up to a limit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rootdisk.errors import BadInput, RootdiskError, TimedOut
from rootdisk.records import pack
from rootdisk.text import printable
from runner.api.results import Result
from runner.api.texts import bytes_of, count_of, seconds_of
from runner.channel.exchange import Exchange

OUTPUT_MAX_BYTES = 16 << 20


def request_of(
    command: Sequence[str], env: Mapping[str, str] | Sequence[str], workdir: str, user: str, *, stdin: bool
) -> bytes:
    """Return the record file that asks the guest to run `command`; BadInput if it is empty or an option is wrong."""
    from runner.api.options import exec_options
    from runner.options.programs import program_records

    options = exec_options(command, env, workdir, user)
    if not options.program:
        raise BadInput("exec: no command", 'write a list: ["ls", "/"]')
    return pack([*program_records(options), *([("stdin", b"1")] if stdin else [])])


def checked(input: bytes | None, timeout: float | None, max_output: int) -> tuple[bytes | None, float | None, int]:
    """Return the arguments of `exec`; BadInput if one has another type, before the program is started."""
    data = None if input is None else bytes_of(input, "input")
    return data, seconds_of(timeout, "timeout"), count_of(max_output, "max_output")


def check_started(result: Result) -> None:
    """Raise RootdiskError if a program that was to go on by itself could not be run."""
    if result.status:
        reason = result.stderr.strip().rpartition(b"\n")[2] or f"status {result.status}"
        raise RootdiskError(f"exec: {printable(reason, 500)}")


class Collected:
    """Output of a program until now. `input` goes to its standard input, which ends then."""

    def __init__(self, exchange: Exchange, input: bytes | None, max_bytes: int) -> None:
        self._exchange = exchange
        self._parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._left = self._max_bytes = max_bytes
        if input is not None:
            exchange.write(input)
            exchange.close_input()

    def add(self, stream: str, data: bytes) -> None:
        """Keep output up to the limit."""
        self._parts[stream].append(data[: max(0, self._left)])
        self._left -= len(data)

    @property
    def is_full(self) -> bool:
        """Return whether the program has written more than is allowed."""
        return self._left < 0

    def result(self) -> Result:
        """Return the result of a program that has ended.

        Raises:
            RootdiskError: It has written too much.
        """
        if self.is_full:
            raise RootdiskError(
                f"exec: the program has written more than {self._max_bytes:,} bytes, and was killed",
                "raise max_output, read its output with spawn, or let it write to a file",
            )
        assert self._exchange.status is not None
        return Result(self._exchange.status, *map(b"".join, self._parts.values()))

    def timed_out(self, seconds: float) -> TimedOut:
        """Return the error for a program that was killed after `seconds`."""
        stdout, stderr = map(b"".join, self._parts.values())
        return TimedOut(
            f"exec: the program did not end within {seconds:g} s, and was killed",
            "raise timeout",
            stdout=stdout,
            stderr=stderr,
        )
