"""Results for programs: --json always prints one array, a row on a line, also of one result."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rootdisk.text import printable


def write_rows(rows: Iterable[object]) -> int:
    """Print `rows` as a JSON array as they come, and return how many there were."""
    count = 0
    for row in rows:
        print(f"{',' if count else '['}\n {json.dumps(row)}", end="")
        count += 1
    print("\n]" if count else "[]")
    return count


def write_value(value: object) -> None:
    """Print one result as indented JSON."""
    print(json.dumps(value, indent=1))


def write_names(names: Iterable[str], *, as_json: bool) -> None:
    """Print the names of what a command was done to: a line each, or as rows."""
    if as_json:
        write_rows({"name": name} for name in names)
        return
    for name in names:
        print(printable(name))
