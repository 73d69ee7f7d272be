"""Notes of a copy about single files."""

from __future__ import annotations

from rootdisk.text import printable

LINES_MAX = 20


class Notes:
    """Remarks and failures, each a line for a terminal. The first ones are kept, all are counted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0
        self.failed = False
        self._partial: list[str] = []

    def remark(self, line: bytes | str) -> None:
        """Something was left out, as documented."""
        self.count += 1
        if len(self.lines) < LINES_MAX:
            self.lines.append(printable(line))

    def failure(self, path: bytes | str, reason: str) -> None:
        """Note that `path` could not be copied, or not completely."""
        self.failed = True
        self.count += 1
        if len(self.lines) < LINES_MAX:
            self.lines.append(f"{printable(path)}: {reason}")

    def partial(self, path: bytes) -> None:
        """The guest could not read all of `path`. It will say why."""
        self.failed = True
        if len(self._partial) < LINES_MAX:
            self._partial.append(printable(path))

    def hear(self, lines: list[bytes]) -> None:
        """Add what the guest says; if it says nothing about files that it could not read, name them."""
        for line in lines:
            self.remark(line)
        if not lines:
            for path in self._partial:
                self.remark(f"{path}: the sandbox could not read it")
