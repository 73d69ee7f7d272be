"""What a copy has to say about single files."""

from __future__ import annotations

from runner.text import printable

LINES_MAX = 20


class Notes:
    """Remarks and failures, each a line for a terminal. The first ones are kept, all are counted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0
        self.failed = False

    def remark(self, line: bytes | str) -> None:
        """`line` is about something that was left out as documented."""
        self.count += 1
        if len(self.lines) < LINES_MAX:
            self.lines.append(printable(line))

    def failure(self, path: bytes | str, reason: str) -> None:
        """`path` could not be copied, or not whole."""
        self.failed = True
        self.count += 1
        if len(self.lines) < LINES_MAX:
            self.lines.append(f"{printable(path)}: {reason}")
