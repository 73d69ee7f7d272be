"""Print the connections of a sandbox with --allow, for the command logs --network."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from rootdisk.cli.rows import write_rows
from rootdisk.text import printable
from runner.sandbox.output.audit_log import connections
from runner.sandbox.state import State

FOLLOW_S = 0.1


def print_connections(
    state: State, options: argparse.Namespace, tail: int | None, since: float | None, until: float | None
) -> int:
    """Print a line for each connection that has ended or was refused, or all of them as JSON."""
    rows: list[dict[str, Any]] = []
    for fresh, is_more in connections(state, tail=tail, since=since, until=until):
        if options.json:
            rows += fresh
        else:
            for row in fresh:
                print(_text(row))
        sys.stdout.flush()
        if not (options.follow and is_more):
            break
        time.sleep(FOLLOW_S)
    if options.json:
        write_rows(rows)
    return 0


def _text(row: dict[str, Any]) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["time"]))
    host = printable(row["host"])
    place = f"{f'[{host}]' if ':' in host else host}:{row['port']}" if row["port"] else host or "-"
    why = f": {printable(row['why'])}" if isinstance(row.get("why"), str) else ""
    return f"{stamp} {printable(row['verdict']):8} {place} {row['sent']} bytes sent, {row['received']} received{why}"
