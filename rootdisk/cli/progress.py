"""How far something is, on a terminal and nowhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

EVERY_S = 0.1
QUIET_S = 1.0  # what is done by then needs no bar

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@contextlib.contextmanager
def terminal_progress(what: str) -> Iterator[Progress | None]:
    """A function that shows it, or None where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    start = time.monotonic()
    shown = start + QUIET_S - EVERY_S

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < EVERY_S or not done:
            return
        shown = now
        rate = done / (now - start)
        left = (total - done) / rate
        text = f"\r{what} {done / 1e6:.0f} of {total / 1e6:.0f} MB, {rate / 1e6:.0f} MB/s, {left:.0f} s left"
        sys.stderr.write(f"{text:<78}")

    yield show
    if shown > start + QUIET_S - EVERY_S:
        sys.stderr.write("\r" + " " * 78 + "\r")
