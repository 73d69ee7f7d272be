"""The documents' code blocks, as the tests run and check them."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.support.commands import ROOT

DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block; `not_run` is the reason that stands before it."""

    language: str
    text: str
    not_run: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page, by its path below docs/."""
    text = (DOCS / page).read_text("utf-8")
    return [Block(found["language"], found["text"], found["why"] or "") for found in _BLOCK.finditer(text)]


def commands(text: str) -> list[str]:
    """The commands of a shell block, one a line of its own; what a command is fed and comments are none."""
    found: list[str] = []
    until = ""
    goes_on = False
    for line in text.splitlines():
        if until:
            until = "" if line == until else until
            continue
        if not goes_on and line.strip() and not line.lstrip().startswith("#"):
            found.append(line.strip())
        goes_on = line.endswith("\\")
        if here := re.search(r"<<-?'?(\w+)'?", line):
            until = here[1]
    return found


def script(page: str) -> str:
    """The page's shell blocks as one script that says where it is and stops at the first error."""
    parts = ["set -euo pipefail"]
    for number, block in enumerate(blocks(page), 1):
        if block.language == "sh" and not block.not_run:
            parts += [f"echo '=== {page}, block {number}'", block.text]
    return "\n".join(parts)


def comes_up(script: str) -> str:
    """What to add to a script that ends with a server in the background: wait until it answers, or fail if it ends."""
    server = re.search(r"(?:localhost|127\.0\.0\.1):(\d+)\b.*&$", commands(script)[-1])
    if server is None:
        return ""
    return f"until (: </dev/tcp/127.0.0.1/{server[1]}) 2>/dev/null; do kill -0 $! || exit 1; sleep 0.1; done\n"
