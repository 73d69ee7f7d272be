"""Docstrings and documents in plain words.

Ruff's pydocstyle rules (pyproject.toml) ask for a docstring on every public module, class and function, and for a period
after its first line. Here is what ruff cannot say: no first line begins with a word that makes the reader guess, and words
that readers have stumbled over do not come back.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PACKAGES = ("rootdisk", "runner", "imagetool")

# Rooms that are still to be rewritten. A new room is not a reason for an entry: write it in plain words.
TO_DO: tuple[str, ...] = ()

# A first line that begins so names nothing: who is "it", what is "what"?
GUESS_WORDS = frozenset(
    re.findall(
        r"\w+",
        "it its they them these those this that there what who whom whose whoever which how why where when so such as "
        "else also again one ones of by for from until till no nobody nothing",
    )
)

STUMBLING = {
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"anew": "again",
    r"who(?:m|so)?ever": "anyone who, the process that",
    r"there(?:of|in|upon|from|by)": "of it, in it",
    r"where(?:of|in|upon)": "of which",
    r"whence|hence(?:forth)?|hither|thither": "from where, so",
    r"here(?:by|with|of)": "with this",
    r"(?:leave|leaves|leaving|left)(?: \S+){0,2} away": "omit, leave out",
    r"(?<!there )(?:is|are|was|were) no (?!longer\b|more\b|less\b|later\b|larger\b)[a-z]+": "is not a",
}
_STUMBLING = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in STUMBLING), re.IGNORECASE)
_SOURCES = ("*.py", "*.c", "*.h", "*.md", "*.toml", "*.json")


def files(*patterns: str) -> Iterator[Path]:
    """The project's own files, without tests and without rooms that are still to be rewritten."""
    tops = [*PACKAGES, "bench", "docs"]
    for pattern in patterns:
        places = [*ROOT.glob(pattern), *(path for top in tops for path in (ROOT / top).rglob(pattern))]
        for path in sorted(places):
            if not path.relative_to(ROOT).as_posix().startswith(TO_DO):
                yield path


def test_the_list_names_what_there_is() -> None:
    assert [room for room in TO_DO if not (ROOT / room).exists()] == []


def first_lines(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line number and first line of every docstring, private ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text.splitlines()[0]


def guesses(source: str) -> list[str]:
    """First lines that begin with a guess word."""
    return [
        f"{number}: {line}"
        for number, line in first_lines(ast.parse(source))
        if re.split(r"[^\w']", line, maxsplit=1)[0].lower() in GUESS_WORDS
    ]


def stumbles(text: str) -> list[str]:
    """Stumbling words, each with its line and what to write instead."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for match in _STUMBLING.finditer(line):
            better = next(b for pattern, b in STUMBLING.items() if re.fullmatch(pattern, match[0], re.IGNORECASE))
            found.append(f"{number}: {match[0]!r}: write {better!r}")
    return found


def test_first_lines_name_their_thing() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}" for path in files("*.py") for fault in guesses(path.read_text("utf-8"))
    ]
    assert faults == []


def test_no_stumbling_words() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}" for path in files(*_SOURCES) for fault in stumbles(path.read_text("utf-8"))
    ]
    assert faults == []


@pytest.mark.parametrize(
    "line",
    ["how to mend it", "written anew", "whoever reads it", "the end thereof", "leave --clone away", "x is no tag"],
)
def test_the_check_can_fail(line: str) -> None:
    assert stumbles(line)
    assert guesses(f'"""Good."""\ndef f():\n    """It and {line}."""\n')


@pytest.mark.parametrize("line", ["there is no tag", "it is no longer there", "recommend it", "keep away from it"])
def test_plain_lines_pass(line: str) -> None:
    assert not stumbles(line)
    assert not guesses(f'"""Good."""\ndef f():\n    """Return {line}."""\n')
