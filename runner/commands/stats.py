"""The command stats: print what running sandboxes use."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from rootdisk.cli.rows import write_rows
from rootdisk.cli.table import formatted, table
from rootdisk.text import printable
from runner.sandbox import liveness, lookup
from runner.sandbox.state import State
from runner.sandbox.usage import Usage, usage
from runner.store.store import Store

EVERY_S = 1.0
_CLEAR = "\x1b[H\x1b[J"  # cursor to the corner, and erase the screen
_HEADS = ("NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "DISK", "PIDS")


def stats_command(options: argparse.Namespace) -> int:
    """Print what sandboxes use: once, or again every second on a terminal."""
    store = Store.open()
    is_once = options.no_stream or options.json or not sys.stdout.isatty()
    earlier: dict[str, Usage] = {}
    try:
        while True:
            if not earlier:
                earlier = {
                    one.name: one for state in _states(store, options.name) if (one := usage(state, network=False))
                }
                time.sleep(EVERY_S)
            now = [one for state in _states(store, options.name) if (one := usage(state))]
            rows = [one.to_json(earlier.get(one.name)) for one in now]
            _print(options, rows, clear=not is_once)
            if is_once:
                return 0
            earlier = {one.name: one for one in now}
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return 0


def _states(store: Store, names: list[str]) -> list[State]:
    if not names:
        return [state for state in lookup.states(store) if state.running]
    states = [lookup.find(store, name) for name in dict.fromkeys(names)]
    for state in states:
        if not state.running:
            raise liveness.not_running(state)
    return states


def _print(options: argparse.Namespace, rows: list[dict[str, Any]], *, clear: bool) -> None:
    if options.json:
        write_rows(rows)
        return
    shown = [{**row, **_docker(row)} for row in rows]
    if options.format and options.format != "table":
        for line in formatted(options.format, rows if options.format == "json" else shown):
            print(line)
        return
    if clear:
        sys.stdout.write(_CLEAR)
    lines = [
        (
            printable(row["Name"]),
            *(row[name] for name in ("CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "Disk", "PIDs")),
        )
        for row in shown
    ]
    for line in table(_HEADS, lines, right=_HEADS[1:]):
        print(line)
    sys.stdout.flush()


def _docker(row: dict[str, Any]) -> dict[str, str]:
    """Return the fields that docker's templates name."""
    limit = row["memory_limit_bytes"]
    network = "-" if row["received_bytes"] is None else f"{_size(row['received_bytes'])} / {_size(row['sent_bytes'])}"
    return {
        "Name": row["name"],
        "ID": row["name"],
        "Container": row["name"],
        "CPUPerc": f"{row['cpu_percent']:.1f}%",
        "MemUsage": f"{_size(row['memory_bytes'])} / {_size(limit)}",
        "MemPerc": f"{100 * row['memory_bytes'] / limit:.1f}%",
        "NetIO": network,
        "BlockIO": f"{_size(row['read_bytes'])} / {_size(row['written_bytes'])}",
        "Disk": _size(row["disk_bytes"]),
        "PIDs": str(row["processes"]),
    }


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
