"""The command logs: print the output of a detached sandbox's program, of a guest's kernel, or its connections."""

from __future__ import annotations

import argparse
import re
import sys
import time

from rootdisk.cli.rows import write_rows
from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.channel import messages
from runner.sandbox import lookup
from runner.sandbox.output.lines import Piece, batches, parse_time, split_lines
from runner.store.store import Store

FOLLOW_S = 0.1


def logs_command(options: argparse.Namespace) -> int:
    """Print the output of a detached sandbox's program, or the console of its guest."""
    tail = _tail(options.tail)
    since, until = parse_time(options.since, "--since"), parse_time(options.until, "--until")
    if options.console and (since is not None or until is not None or options.timestamps):
        raise BadInput("--console", "a console has no times: omit --since, --until and --timestamps")
    if options.console and options.network:
        raise BadInput("--console and --network", "use one of them")
    state = lookup.find(Store.open(), options.name)
    if options.network:
        from runner.commands.connections import print_connections

        return print_connections(state, options, tail, since, until)
    writer = Writer(timestamps=options.timestamps, as_json=options.json)
    wanted = {"console": options.console, "tail": tail, "since": since, "until": until}
    for pieces, is_more in batches(state, **wanted, joined=options.json):
        for piece in pieces:
            writer.write(piece)
        writer.flush()
        if not (options.follow and is_more):
            break
        time.sleep(FOLLOW_S)
    writer.close()
    return 0


class Writer:
    """Writes pieces to standard output and errors, or all of them as JSON."""

    def __init__(self, *, timestamps: bool, as_json: bool) -> None:
        self._timestamps = timestamps
        self._rows: list[dict[str, object]] | None = [] if as_json else None
        self._at_start = {messages.STDOUT: True, messages.STDERR: True}
        self._stream = ""

    def write(self, piece: Piece) -> None:
        """Write a piece to its stream, or keep it for the array."""
        stream = "stderr" if piece.kind == messages.STDERR else "stdout"
        if self._rows is not None:
            text = piece.data.decode("utf-8", "replace")
            self._rows.append({"time": piece.time, "stream": stream, "text": text})
            return
        if stream != self._stream:  # both may lead to the same place
            self.flush()
            self._stream = stream
        out = getattr(sys, stream).buffer
        if not self._timestamps:
            out.write(piece.data)
            return
        for line in split_lines(piece.data):
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
