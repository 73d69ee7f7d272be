"""The command logs: print the output of a detached sandbox's program, or of a guest's kernel."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rootdisk.cli.rows import write_rows
from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.channel import messages
from runner.sandbox import directory
from runner.sandbox.logs import Reader
from runner.store.store import Store

FOLLOW_S = 0.1
_DURATION = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)s)?")
_UNIX = re.compile(r"[0-9]{9,11}(?:\.[0-9]{1,9})?")


class Piece(NamedTuple):
    """Output of one stream: a line with its end, or a part of a line."""

    time: float | None
    kind: int
    data: bytes


def logs_command(options: argparse.Namespace) -> int:
    """Print the output of a detached sandbox's program, or the console of its guest."""
    tail = _tail(options.tail)
    since, until = _time(options.since, "--since"), _time(options.until, "--until")
    if options.console and (since is not None or until is not None or options.timestamps):
        raise BadInput("--console", "a console has no times: omit --since, --until and --timestamps")
    state = directory.find(Store.open(), options.name)
    path = state.folder / ("console.log" if options.console else "output.log")
    if not path.exists():
        raise BadInput(
            f"sandbox {options.name} keeps no output: it runs in the foreground",
            "boot it with --detach, or see its console: runner logs --console",
        )
    reader = Reader(path)
    writer = _Writer(timestamps=options.timestamps, as_json=options.json)
    first = True
    while True:
        is_running = options.follow and directory.is_running(state)
        pieces: Iterable[Piece] = _within(_pieces(reader, framed=not options.console), since, until)
        if first and (tail is not None or options.json):
            pieces = _last(pieces, tail)
        for piece in pieces:
            writer.write(piece)
        writer.flush()
        first = False
        if not is_running or (until is not None and time.time() > until):
            writer.close()
            return 0
        time.sleep(FOLLOW_S)


def _pieces(reader: Reader, *, framed: bool) -> Iterator[Piece]:
    if framed:
        for seconds, kind, data in reader.timed_frames():
            yield Piece(seconds, messages.STDERR if kind == messages.STDERR else messages.STDOUT, data)
    else:
        yield from (Piece(None, messages.STDOUT, data) for data in reader.data())


def _within(pieces: Iterable[Piece], since: float | None, until: float | None) -> Iterator[Piece]:
    for piece in pieces:
        if piece.time is None and (since is not None or until is not None):
            raise BadInput("this log has no times: an older runner wrote it", "omit --since and --until")
        if (since is None or piece.time >= since) and (until is None or piece.time <= until):  # type: ignore[operator]
            yield piece


def _last(pieces: Iterable[Piece], count: int | None) -> list[Piece]:
    """Return the last `count` lines of `pieces`, or all if None. An unfinished line at the end of a stream counts as a line."""
    lines: deque[Piece] = deque(maxlen=count)
    open_lines: dict[int, Piece] = {}
    for piece in pieces:
        for data in _split(piece.data):
            start = open_lines.pop(piece.kind, None)
            line = Piece(start.time if start else piece.time, piece.kind, (start.data if start else b"") + data)
            if data.endswith(b"\n"):
                lines.append(line)
            else:
                open_lines[piece.kind] = line
    lines.extend(open_lines.values())
    return list(lines)


def _split(data: bytes) -> list[bytes]:
    """Split data at \\n only, and keep the line ends."""
    return [part for part in re.split(b"(?<=\n)", data) if part]


class _Writer:
    """Writes pieces to standard output and errors, or all of them as JSON."""

    def __init__(self, *, timestamps: bool, as_json: bool) -> None:
        self._timestamps = timestamps
        self._rows: list[dict[str, object]] | None = [] if as_json else None
        self._at_start = {messages.STDOUT: True, messages.STDERR: True}

    def write(self, piece: Piece) -> None:
        """Write a piece to its stream, or keep it for the array."""
        stream = "stderr" if piece.kind == messages.STDERR else "stdout"
        if self._rows is not None:
            text = piece.data.decode("utf-8", "replace")
            self._rows.append({"time": piece.time, "stream": stream, "text": text})
            return
        out = getattr(sys, stream).buffer
        if not self._timestamps:
            out.write(piece.data)
            return
        for line in _split(piece.data):
            if self._at_start[piece.kind]:
                out.write(_stamp(piece.time))
            out.write(line)
            self._at_start[piece.kind] = line.endswith(b"\n")

    def flush(self) -> None:
        """Flush both streams."""
        for stream in (sys.stdout, sys.stderr):
            stream.buffer.flush()

    def close(self) -> None:
        """Print the array."""
        if self._rows is not None:
            write_rows(self._rows)


def _stamp(seconds: float | None) -> bytes:
    if seconds is None or seconds > 253402300799:
        return b"- "
    to_the_second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{to_the_second}.{int(seconds * 1000) % 1000:03}Z ".encode()


def _tail(text: str) -> int | None:
    if text == "all":
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise BadInput(f"--tail {printable(text, 40)!r}", "write a number of lines, or all")
    return int(text)


def _time(text: str | None, option: str) -> float | None:
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
