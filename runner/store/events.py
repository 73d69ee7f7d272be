"""Events of the sandboxes in a store, a line of JSON each, which any process of the user can read.

    ROOT/events, ROOT/events.old      a line of JSON for each event; the older file has older events

    {"time": 1795986730.82, "event": "ready", "sandbox": "web"}

| event      | more fields                          | when |
|------------|--------------------------------------|------|
| resolved   | artifact, digest, snapshot           | a boot knows which artifact it is; snapshot: with `--from` |
| hit        | digest                               | the store has it |
| fetched    | digest, bytes, reused                | it was fetched; bytes is what came from the registry |
| refused    | artifact, error                      | the policy does not accept it |
| started    | start, accelerator                   | the machine runs; start is cold, template or snapshot |
| ready      |                                      | the program has started |
| exec       | session                              | a command was started in the sandbox |
| exec-ended | session, status                      | it has ended |
| snapshot   | snapshot, paused_ms                  | the sandbox was saved, and stood still for this time |
| renamed    | before                               | it has another name than before |
| restarting | status, wait_ms                      | it has ended and starts again after this time |
| ended      | status, error                        | the sandbox has ended |

No event has words of a command, variables or output in it. An event that cannot be written, because the disk is full, is lost:
nothing waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rootdisk.durable import open_file, opener

FILE_MAX_BYTES = 4 << 20
LINE_MAX_BYTES = 4096  # PIPE_BUF: a line is written whole, also to a pipe
_TEXT_MAX = 500
_TIME_MAX = 253402300800  # the year 10000; json reads NaN and Infinity too


class Events(NamedTuple):
    """Destination of the events of one sandbox."""

    folder: Path  # of the store
    sandbox: str
    fd: int | None = None  # of the caller of `boot --events`

    def tell(self, event: str, **fields: str | int) -> None:
        """Write an event."""
        short = {name: value[:_TEXT_MAX] if isinstance(value, str) else value for name, value in fields.items()}
        row = {"time": round(time.time(), 3), "event": event, "sandbox": self.sandbox, **short}
        line = json.dumps(row).encode() + b"\n"
        if len(line) > LINE_MAX_BYTES:
            line = json.dumps({name: row[name] for name in ("time", "event", "sandbox")}).encode() + b"\n"
        if self.fd is not None:
            with contextlib.suppress(OSError):  # its reader has gone
                _write_now(self.fd, line)
        with contextlib.suppress(OSError):
            _append(self.folder / "events", line)


def _write_now(fd: int, line: bytes) -> None:
    """Write a line if that does not block: the keeper must continue even if nobody reads. pipe(7): PIPE_BUF bytes fit then."""
    room = select.poll()
    room.register(fd, select.POLLOUT)
    if any(events & select.POLLOUT for _, events in room.poll(0)):
        os.write(fd, line)


def _append(path: Path, line: bytes) -> None:
    fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, line)
        if os.fstat(fd).st_size > FILE_MAX_BYTES:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                os.replace(path, path.with_name("events.old"))
    finally:
        os.close(fd)


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line; None if it is not one, for example a part that a killed process has written."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(row, dict)
        or not isinstance(row.get("time"), int | float)
        or not 0 <= row["time"] < _TIME_MAX
        or not isinstance(row.get("event"), str)
    ):
        return None
    return {**row, "sandbox": str(row.get("sandbox", ""))}


def kept(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events that the store still has, the oldest first. A file that is not a log, or cannot be read, is skipped."""
    with contextlib.ExitStack() as opened:
        files: list[BinaryIO] = []
        for name in ("events", "events.old"):  # in this order: a file that gets the other name meanwhile is not missed
            with contextlib.suppress(OSError):
                files.append(opened.enter_context(open(folder / name, "rb", opener=opener)))
        if len(files) > 1 and os.path.sameopenfile(files[0].fileno(), files[1].fileno()):
            files.pop()
        for file in reversed(files):
            if (too_much := os.fstat(file.fileno()).st_size - 2 * FILE_MAX_BYTES) > 0:  # not written by us
                file.seek(too_much)
            yield from filter(None, map(parse, file))


def last_of(folder: Path, sandbox: str, since: float) -> dict[str, Any] | None:
    """Return the last event of a sandbox since a time, in Unix seconds; None if there is none."""
    rows = [row for row in kept(folder) if row["sandbox"] == sandbox and row["time"] >= since - 1]
    return rows[-1] if rows else None
