"""Values that the API returns."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Result(NamedTuple):
    """Exit status and output of a program in a sandbox."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace")


class LogPiece(NamedTuple):
    """Output in a log: a line with its end, or a part of a line."""

    time: float | None  # Unix seconds; None for a console
    stream: str  # "stdout" or "stderr"
    data: bytes


class Pulled(NamedTuple):
    """An artifact in the store. The last three are bytes; all 0 if it was there already."""

    digest: str
    disk: Path
    fetched: int
    reused: int
    holes: int


class Pruned(NamedTuple):
    """A file that was removed from the store."""

    path: Path
    size: int


class Damage(NamedTuple):
    """A damaged file of the store."""

    path: Path
    what: str
    repaired: bool


class Verified(NamedTuple):
    """Result of a check of the store."""

    checked: int
    damaged: tuple[Damage, ...]


# Named here, because `list` is a method of the sandboxes.
Remarks = list[str]
LogBatch = tuple[list[LogPiece], bool]  # and whether more may come
