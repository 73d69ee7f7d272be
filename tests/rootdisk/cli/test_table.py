"""Tables that keep their columns, and docker's templates."""

from __future__ import annotations

import pytest

from rootdisk.cli.table import formatted, shortened, table, width
from rootdisk.errors import BadInput

ROWS = [{"Names": "box", "Labels": {"a": "1"}, "Label": {"a": "1"}, "in": {"use": "tcg"}, "status": None}]


def test_columns_stay_columns() -> None:
    """Whatever a cell holds: wide characters, line ends, more than anybody expected."""
    rows = [("a", "x" * 70, "1"), ("名前", "y\nz\x1b[31m", "22"), ("", "", "")]
    lines = list(table(("NAME", "TEXT", "N"), rows, right=("N",)))
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    column = lines[0].index("TEXT")
    assert lines[1][column] == "x"
    assert width(lines[2][: lines[2].index("y")]) == column
    assert {width(line) for line in lines[:3]} == {width(lines[0])}


@pytest.mark.parametrize(
    "text", ["registry.example.org/team/name/of/some/length/web-disk:2025-06-01", "名" * 60, "é" * 80]
)
def test_long_references_are_shortened(text: str) -> None:
    for limit in (20, 40, 48):
        assert width(shortened(text, limit)) <= limit
    assert shortened(text, 48).endswith(text[-3:])
    assert shortened("short:1", 48) == "short:1"


@pytest.mark.parametrize(
    ("template", "lines"),
    [
        ("{{.Names}}", ["box"]),
        (r"{{ .names }}\t{{.Label \"a\"}}".replace('\\"', '"'), ["box\t1"]),
        ("{{json .Labels}}", ['{"a": "1"}']),
        ("{{.in.use}} {{.status}}.", ["tcg ."]),
        (r"table {{.Names}}\t{{.Labels}}", ["NAMES  LABELS", "box    a=1"]),
    ],
)
def test_templates(template: str, lines: list[str]) -> None:
    assert list(formatted(template, ROWS)) == lines


@pytest.mark.parametrize(
    ("template", "said"), [("{{.Nmaes}}", "Names"), ("{{range .}}", "{{.Field}}"), ("{{.Names", "{{.Field}}")]
)
def test_wrong_templates(template: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        list(formatted(template, ROWS))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_has_a_hint() -> None:
    rows = [{"running": True, "config": "abc"}]
    with pytest.raises(BadInput, match=r"unknown field 'State\.Running': write it so"):
        list(formatted("{{.State.Running}}", rows, lambda path: f"write it so: {path}"))
    with pytest.raises(BadInput, match=r"unknown field 'config\.Image': there are config, running"):
        list(formatted("{{.config.Image}}", rows, lambda path: ""))
