"""Read the events of a store as they happen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from runner.sandbox.output.logs import Lines
from runner.store import events
from runner.store.store import Store

FOLLOW_S = 0.1


def happened(store: Store, since: float | None, until: float | None) -> Iterator[dict[str, Any]]:
    """Yield events since a time, in Unix seconds, by default from now on. Wait for more until `until`, by default forever."""
    start = time.time() if since is None else since
    lines = Lines(store.root / "events", events.LINE_MAX_BYTES)
    while True:
        now = time.time()
        for row in filter(None, map(events.parse, lines.fresh())):
            if row["time"] >= start and (until is None or row["time"] <= until):
                yield row
        if until is not None and now > until:
            return
        time.sleep(FOLLOW_S)
