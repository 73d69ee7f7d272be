"""Output in a log, as lines with their times: the last ones, or those of a span of time."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.channel import messages
from runner.sandbox.liveness import is_running
from runner.sandbox.output.logs import Reader, has_log
from runner.sandbox.state import State

_DURATION = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)s)?")
_UNIX = re.compile(r"[0-9]{9,11}(?:\.[0-9]{1,9})?")


class Piece(NamedTuple):
    """Output of one stream: a line with its end, or a part of a line."""

    time: float | None
    kind: int
    data: bytes


def open_log(state: State, *, console: bool = False) -> Reader:
    """Open the log of a detached sandbox's program, or of its console.

    Raises:
        BadInput: There is none.
    """
    path = state.folder / ("console.log" if console else "output.log")
    if not has_log(path):
        raise BadInput(
            f"sandbox {state.name} keeps no output: it runs in the foreground",
            "boot it with --detach, or see its console: runner logs --console",
        )
    return Reader(path)


@contextlib.contextmanager
def pinned(state: State) -> Iterator[State]:
    """Yield the state with a folder that stays the same one if the sandbox is renamed.

    Raises:
        BadInput: It has just been removed or renamed.
    """
    try:
        folder = os.open(state.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise BadInput(f"no sandbox {state.name!r}", "see runner ps -a") from err
    try:
        yield state._replace(folder=Path(f"/proc/self/fd/{folder}"))
    finally:
        os.close(folder)


def batches(
    state: State,
    *,
    console: bool = False,
    tail: int | None = None,
    since: float | None = None,
    until: float | None = None,
    joined: bool = False,
) -> Iterator[tuple[Iterable[Piece], bool]]:
    """Yield what a log has, then again and again what is new in it, and with each whether more may come.

    `tail` is how many lines of the first batch are wanted. With `joined`, pieces of a line in it are joined. The caller waits
    between two batches, and stops if no more may come.

    Raises:
        BadInput: The sandbox has no log, or it has no times.
    """
    with pinned(state) as state:
        reader = open_log(state, console=console)
        is_first = True
        while True:
            may_grow = is_running(state)
            found: Iterable[Piece] = within(pieces(reader, framed=not console), since, until)
            if is_first and (tail is not None or joined):
                found = last_lines(found, tail)
            is_first = False
            yield found, may_grow and (until is None or time.time() <= until)


def pieces(reader: Reader, *, framed: bool) -> Iterator[Piece]:
    """Yield what was written since the last call. A console has no frames, so no times and only one stream."""
    if framed:
        for seconds, kind, data in reader.timed_frames():
            yield Piece(seconds, messages.STDERR if kind == messages.STDERR else messages.STDOUT, data)
    else:
        yield from (Piece(None, messages.STDOUT, data) for data in reader.data())


def within(pieces: Iterable[Piece], since: float | None, until: float | None) -> Iterator[Piece]:
    """Yield the pieces of a span of time, in Unix seconds; BadInput if they have no times."""
    for piece in pieces:
        if piece.time is None and (since is not None or until is not None):
            raise BadInput("this log has no times: an older runner wrote it", "omit --since and --until")
        if (since is None or piece.time >= since) and (until is None or piece.time <= until):  # type: ignore[operator]
            yield piece


def last_lines(pieces: Iterable[Piece], count: int | None) -> list[Piece]:
    """Return the last `count` lines of `pieces`, or all if None. An unfinished line at the end of a stream counts as a line."""
    lines: deque[Piece] = deque(maxlen=count)
    open_lines: dict[int, Piece] = {}
    for piece in pieces:
        unwanted = 0 if count is None else _before_last(piece.data, count)
        if unwanted:
            open_lines.pop(piece.kind, None)  # what is left out ends it
        for data in split_lines(piece.data[unwanted:]):
            start = open_lines.pop(piece.kind, None)
            line = Piece(start.time if start else piece.time, piece.kind, (start.data if start else b"") + data)
            if data.endswith(b"\n"):
                lines.append(line)
            else:
                open_lines[piece.kind] = line
    lines.extend(open_lines.values())
    return list(lines)


def _before_last(data: bytes, count: int) -> int:
    """Return how many bytes there are before the last `count` whole lines."""
    at = len(data)
    for _ in range(count + 1):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            break
    return at + 1


def split_lines(data: bytes) -> list[bytes]:
    """Split data at \\n only, and keep the line ends."""
    return [part for part in re.split(b"(?<=\n)", data) if part]


def parse_time(text: str | None, option: str) -> float | None:
    """Parse a time as docker does: 10m or 1h30m ago, Unix seconds, or RFC 3339. BadInput names the option."""
    if text is None:
        return None
    duration = _DURATION.fullmatch(text)
    if text and duration:
        days, hours, minutes, seconds = (float(part or 0) for part in duration.groups())
        return time.time() - (days * 86400 + hours * 3600 + minutes * 60 + seconds)
    if _UNIX.fullmatch(text):
        return float(text)
    import datetime  # seldom needed

    try:
        if not re.match("[0-9]{4}-[0-9]{2}-[0-9]{2}", text) or not text.isascii():
            raise ValueError
        return datetime.datetime.fromisoformat(text).timestamp()  # without a zone: local time, as docker
    except (ValueError, OverflowError):
        hint = "write 10m, 2025-06-01T12:00:00Z or Unix seconds"
        raise BadInput(f"{option} {printable(text, 60)!r}", hint) from None
