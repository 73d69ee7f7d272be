"""Results as a table for people, or as lines by a template. A cell never breaks its table: it is one line, and padded by its width on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rootdisk.errors import BadInput
from rootdisk.text import one_line

_FIELD = re.compile(r"\{\{\s*(json\s+)?\.([A-Za-z0-9_.]*)(?:\s+\"([^\"]*)\")?\s*\}\}")
_ESCAPES = {r"\t": "\t", r"\n": "\n", r"\\": "\\"}


def width(text: str) -> int:
    """Return how many columns of a terminal `text` takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    import unicodedata  # seldom needed

    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(bool(unicodedata.combining(char)) for char in text)


def shortened(text: str, limit: int) -> str:
    """Return `text` in at most `limit` columns: its middle is left out, as a reference's ends say most."""
    if width(text) <= limit:
        return text
    head, tail = limit // 2 - 1, limit - limit // 2
    while head + tail > 2 and width(text[:head] + text[-tail:]) >= limit:
        head, tail = max(head - 1, 1), max(tail - 1, 1)
    return f"{text[:head]}…{text[-tail:]}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> Iterator[str]:
    """Return the lines of a table, as wide as its cells need; the columns of `right` are aligned to the right."""
    lines = [tuple(map(one_line, row)) for row in (headers, *rows)]
    widths = [max(width(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        cells = []
        for header, cell, columns in zip(headers, line, widths, strict=True):
            pad = " " * (columns - width(cell))
            cells.append(pad + cell if header in right else cell + pad)
        yield "  ".join(cells).rstrip()


def formatted(
    template: str, rows: Sequence[Mapping[str, Any]], elsewhere: Callable[[str], str] | None = None
) -> Iterator[str]:
    """Return a line for each row by docker's templates: {{.Field}}, {{json .}}, {{.Label "name"}}; `table …` gives a table.

    BadInput names the fields there are, or what `elsewhere` says to write for the unknown one. A field's name is looked for in
    any case.
    """
    if template == "json":
        template = "{{json .}}"
    is_table = template.startswith("table ")
    body = re.sub(r"\\[tn\\]", lambda match: _ESCAPES[match[0]], template.removeprefix("table "))
    rest = _FIELD.sub("", body)
    if "{{" in rest or "}}" in rest:
        raise BadInput(f"--format {template!r:.100}", 'write {{.Field}}, {{json .}} or {{.Label "name"}}')
    lines = [_FIELD.sub(lambda match, row=row: _value(match, row, elsewhere), body) for row in rows]  # type: ignore[misc]
    if not is_table:
        yield from map(one_line_but_tabs, lines)
        return
    heads = _FIELD.sub(lambda match: (match[3] or match[2]).upper(), body)
    yield from table(heads.split("\t"), [line.split("\t") for line in lines])


def one_line_but_tabs(text: str) -> str:
    """Return `text` as `one_line` does, but keep tabs and line ends of the template."""
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in text.split("\n"))


def _value(match: re.Match[str], row: Mapping[str, Any], elsewhere: Callable[[str], str] | None) -> str:
    value: Any = row
    for name in filter(None, match[2].split(".")):
        known = {str(key).lower(): key for key in value} if isinstance(value, Mapping) else {}
        if name.lower() not in known:
            hint = elsewhere(match[2]) if elsewhere else ""
            raise BadInput(
                f"--format: unknown field {match[2]!r:.60}", hint or f"there are {', '.join(sorted(map(str, row)))}"
            )
        value = value[known[name.lower()]]
    if match[3] is not None:
        value = value.get(match[3], "") if isinstance(value, Mapping) else ""
    if match[1]:
        return json.dumps(value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return one_line("" if value is None else str(value).lower() if isinstance(value, bool) else str(value))
