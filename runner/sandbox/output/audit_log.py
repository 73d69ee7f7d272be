"""Read the record of a sandbox's connections, which the keeper of one with --allow writes."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from rootdisk.errors import BadInput
from runner.network.audit import LOG_NAME
from runner.sandbox import liveness
from runner.sandbox.output.lines import pinned
from runner.sandbox.output.logs import Lines, has_log
from runner.sandbox.state import State

_LINE_MAX_BYTES = 64 << 10  # more than any of audit.py: host and reason are bounded
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "time": (int, float),
    "host": str,
    "port": int,
    "verdict": str,
    "sent": int,
    "received": int,
}


def connections(
    state: State, *, tail: int | None = None, since: float | None = None, until: float | None = None
) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Yield the connections that have ended or were refused, then again and again new ones, and with each whether more may come.

    `tail` is how many of the first batch are wanted; `since` and `until` are Unix seconds. The caller waits between two batches.

    Raises:
        BadInput: The sandbox has no record.
    """
    with pinned(state) as state:
        path = state.folder / LOG_NAME
        if not has_log(path):
            raise BadInput(f"sandbox {state.name} has no record of connections", "boot it with --allow HOST")
        lines = Lines(path, _LINE_MAX_BYTES)
        most = tail
        while True:
            may_grow = liveness.is_running(state)
            found = filter(None, map(_row, lines.fresh()))
            rows = deque((row for row in found if _is_within(row["time"], since, until)), most)
            most = None
            yield list(rows), may_grow and (until is None or time.time() <= until)


def _is_within(seconds: float, since: float | None, until: float | None) -> bool:
    return (since is None or seconds >= since) and (until is None or seconds <= until)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_whole = isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in _FIELDS.items())
    return row if is_whole else None
