"""Print the connections of a sandbox with --allow, for the command logs --network."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from rootdisk.cli.rows import write_rows
from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.network.audit import LOG_NAME
from runner.sandbox import liveness
from runner.sandbox.lines import pinned
from runner.sandbox.logs import Reader
from runner.sandbox.state import State

FOLLOW_S = 0.1
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "time": (int, float),
    "host": str,
    "port": int,
    "verdict": str,
    "sent": int,
    "received": int,
}


def print_connections(
    state: State, options: argparse.Namespace, tail: int | None, since: float | None, until: float | None
) -> int:
    """Print a line for each connection that has ended or was refused, or all of them as JSON."""
    with pinned(state) as state:
        return _print(state, options, tail, since, until)


def _print(
    state: State, options: argparse.Namespace, tail: int | None, since: float | None, until: float | None
) -> int:
    path = state.folder / LOG_NAME
    if not path.exists():
        raise BadInput(f"sandbox {state.name} has no record of connections", "boot it with --allow HOST")
    lines = _Lines(Reader(path))
    rows: list[dict[str, Any]] = []
    is_first = True
    while True:
        is_running = options.follow and liveness.is_running(state)
        fresh = [
            row
            for row in lines.fresh()
            if (since is None or row["time"] >= since) and (until is None or row["time"] <= until)
        ]
        if is_first and tail is not None:
            fresh = list(deque(fresh, maxlen=tail))
        is_first = False
        if options.json:
            rows += fresh
        for row in [] if options.json else fresh:
            print(_text(row))
        sys.stdout.flush()
        if not is_running or (until is not None and time.time() > until):
            break
        time.sleep(FOLLOW_S)
    if options.json:
        write_rows(rows)
    return 0


class _Lines:
    """The rows of a record that may still be written. Lines that are none, as after a full disk, are left out."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._rest = b""

    def fresh(self) -> Iterator[dict[str, Any]]:
        """Yield what was written since the last call."""
        for data in self._reader.data():
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                if (row := _row(line)) is not None:
                    yield row


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_whole = isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in _FIELDS.items())
    return row if is_whole else None


def _text(row: dict[str, Any]) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["time"]))
    host = printable(row["host"])
    place = f"{f'[{host}]' if ':' in host else host}:{row['port']}" if row["port"] else host or "-"
    why = f": {printable(row['why'])}" if isinstance(row.get("why"), str) else ""
    return f"{stamp} {printable(row['verdict']):8} {place} {row['sent']} bytes sent, {row['received']} received{why}"
