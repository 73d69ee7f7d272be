"""The command events: print what happens to sandboxes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from rootdisk.cli.rows import write_rows
from rootdisk.cli.table import formatted
from rootdisk.errors import BadInput
from rootdisk.text import one_line, printable
from runner.sandbox.output.event_log import happened
from runner.sandbox.output.lines import parse_time
from runner.store.store import Store

_KEYS = ("sandbox", "event")


def events_command(options: argparse.Namespace) -> int:
    """Print events, from now on or from --since, until interrupted or until --until."""
    since, until = parse_time(options.since, "--since"), parse_time(options.until, "--until")
    is_wanted = _filter(options.filter)
    rows = (row for row in happened(Store.open(), since, until) if is_wanted(row))
    try:
        if options.json:
            write_rows(rows)
        else:
            for row in rows:
                print(_line(row, options.format), flush=True)
    except KeyboardInterrupt:
        if options.json:
            print("\n]")
        sys.stdout.flush()
    return 0


def _line(row: dict[str, Any], template: str | None) -> str:
    if template == "json":
        return json.dumps(row)
    if template:
        return next(iter(formatted(template, [row])))
    more = " ".join(f"{name}={printable(value)}" for name, value in row.items() if name not in ("time", *_KEYS))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(row["time"]))
    text = f"{stamp}.{int(row['time'] * 1000) % 1000:03}Z {printable(row['sandbox'])} {printable(row['event'])} {more}"
    return one_line(text.rstrip())


def _filter(texts: list[str]) -> Callable[[dict[str, Any]], bool]:
    wanted: dict[str, set[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if key not in _KEYS or not equals:
            raise BadInput(f"--filter {printable(text, 60)!r}", f"write KEY=VALUE; KEY is {' or '.join(_KEYS)}")
        wanted.setdefault(key, set()).add(value)
    return lambda row: all(row[key] in values for key, values in wanted.items())
