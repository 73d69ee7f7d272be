"""Each message of the troubleshooting page is one that the tools print."""

from __future__ import annotations

import re

import pytest

from tests.support.commands import ROOT
from tests.support.pages import DOCS

ROWS = re.findall(
    r"^\| (.+?) \| (.+?) \| (.+?) \|$", (DOCS / "howto/troubleshooting.md").read_text("utf-8"), re.MULTILINE
)
MESSAGES = [row[0] for row in ROWS if row[0] not in ("message", "---|---|---")]
SOURCE = re.sub(
    r'"\s*\n?\s*f?"',
    "",
    "\n".join(
        path.read_text("utf-8").replace('\\"', '"')
        for package in ("rootdisk", "runner", "imagetool")
        for path in sorted((ROOT / package).rglob("*.[pc]*"))
        if path.suffix in (".py", ".c")
    ),
)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_there(message: str) -> None:
    quoted = re.findall(r"`([^`]+)`", message)
    assert quoted
    parts = [part.strip(" :,") for part in quoted[0].split("…")]
    for part in (part for part in parts if len(part) > 3):
        assert part in SOURCE, part


def test_there_are_many_and_each_has_a_remedy() -> None:
    assert len(MESSAGES) > 40
    assert all(cause.strip() and remedy.strip() for _, cause, remedy in ROWS)
