"""Format the result of `inspect` for people: a line for each value, nested values indented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rootdisk.text import printable

_WIDTH = 14


def readable(value: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """Yield lines of `name: value`. Tables and lists of tables follow below their name."""
    for name, item in value.items():
        head = f"{indent}{printable(name, 80) + ':':{_WIDTH}}"
        if item in (None, "", {}, [], ()):
            continue
        if isinstance(item, Mapping):
            yield head.rstrip()
            yield from readable(item, f"{indent}  ")
        elif isinstance(item, (list, tuple)) and any(isinstance(row, Mapping) for row in item):
            yield f"{head} {len(item)}"
            for row in item:
                if isinstance(row, Mapping):
                    yield f"{indent}  - {_short(row)}"
        elif isinstance(item, (list, tuple)):
            yield f"{head} {printable(' '.join(map(str, item)), 2000)}"
        else:
            yield f"{head} {_scalar(name, item)}"


def _short(value: Mapping[str, object]) -> str:
    """Format a small table on one line."""
    return ", ".join(
        f"{printable(key, 80)} {_scalar(str(key), item)}" for key, item in value.items() if item not in (None, "", {})
    )


def _scalar(name: str, item: object) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int) and name.endswith(("size", "bytes", "compressed")) and item >= 1 << 20:
        return f"{item} ({item / (1 << 20):.1f} MiB)"
    return printable(item, 2000)
