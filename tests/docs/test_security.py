"""docs/explanation/security.md: every promise names tests that attack it, and each of them exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PAGE = ROOT / "docs/explanation/security.md"
HEAD = ["what is tried", "what happens", "test"]
LIMIT = "a limit"
NAMED = re.compile(r"`(tests/[\w/]+\.py)?::(\w+)`")


def sections() -> Iterator[tuple[str, str]]:
    """Each section's title and text, without what stands before the first."""
    for part in PAGE.read_text().split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        yield title, text


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def rows() -> Iterator[tuple[str, list[str]]]:
    for title, text in sections():
        for line in text.splitlines():
            if line.startswith("| ") and cells(line) != HEAD:
                yield title, cells(line)


@cache
def names_in(path: Path) -> frozenset[str]:
    """The tests of a module: functions, and classes or names that pytest collects."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.add(node.name)
        elif isinstance(node, ast.Assign):  # hypothesis: AnythingTest = Anything.TestCase
            found |= {target.id for target in node.targets if isinstance(target, ast.Name) and "Test" in target.id}
    return frozenset(found)


def missing(cell: str) -> list[str]:
    """What of a row's last cell is no test, or is not there."""
    wrong, file = [], ""
    for word in cell.split(", "):
        match = NAMED.fullmatch(word)
        if match is None:
            wrong.append(word)
            continue
        file = match[1] or file
        if not file or not (ROOT / file).is_file() or match[2] not in names_in(ROOT / file):
            wrong.append(word)
    return wrong


def test_every_section_is_a_table() -> None:
    """A promise in a sentence beside the table would have no test."""
    for title, text in sections():
        parts = text.strip().split("\n\n")
        assert len(parts) <= 2, title
        head, line, *_ = parts[-1].splitlines()
        assert cells(head) == HEAD, title
        assert line == "|---|---|---|", title
        assert all(row.startswith("| ") for row in parts[-1].splitlines()[2:]), title


def test_every_row_names_a_test_that_exists_or_is_a_limit() -> None:
    found = list(rows())
    assert len(found) > 80
    for title, row in found:
        assert len(row) == 3, (title, row)
        assert all(row), (title, row)
        assert row[2] == LIMIT or missing(row[2]) == [], (title, row[0], missing(row[2]))


def test_no_line_is_there_twice() -> None:
    tried = [(title, row[0]) for title, row in rows()]
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize(
    ("cell", "wrong"),
    [
        ("", 1),
        ("a limit, `tests/docs/test_security.py::test_no_line_is_there_twice`", 1),
        ("`::test_no_line_is_there_twice`", 1),
        ("`tests/docs/test_security.py`", 1),
        ("`tests/docs/test_none.py::test_a`, `::test_b`", 2),
        ("`tests/docs/test_security.py::test_no_line_is_there_twice`, `::names_in`", 1),
        ("`tests/docs/test_security.py::test_no_line_is_there_twice`, `::test_every_section_is_a_table`", 0),
    ],
)
def test_a_wrong_name_is_found(cell: str, wrong: int) -> None:
    assert len(missing(cell)) == wrong
