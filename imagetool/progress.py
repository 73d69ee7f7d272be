"""Show the progress of a command: bars for steps longer than a second; without a terminal, lines for long steps.

with reported() as report:
    step = report("packing")      step(done, total), bytes, from any thread
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rootdisk.cli.progress import QUIET_S, Progress

if TYPE_CHECKING:  # it takes longer to load than most commands to run
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Report = Callable[[str], Progress]


def silent(_: str) -> Progress:
    """The report that nobody sees."""
    return lambda _done, _total: None


@contextlib.contextmanager
def reported(*, quiet: bool = False) -> Iterator[Report]:
    """A report on standard error; silent with `quiet`, and in one of several processes."""
    terminal = sys.__stderr__
    if quiet or terminal is None or _is_one_of_several():
        yield silent
        return
    if not terminal.isatty():
        from rootdisk.cli.progress import Lines

        with Lines() as lines:
            yield lines.step
        return
    bars = _Bars()
    try:
        yield bars.step
    finally:
        bars.close()


def _is_one_of_several() -> bool:
    module = sys.modules.get("multiprocessing.process")  # every child of it has loaded it
    return module is not None and module.parent_process() is not None


class _Bars:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rich: RichProgress | None = None
        self._began: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}

    def step(self, what: str) -> Progress:
        """Return the progress of the step `what`."""
        return lambda done, total: self._show(what, done, total)

    def _show(self, what: str, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._began.setdefault(what, now) < QUIET_S:
                return
            rich = self._rich = self._rich or _started()
            if what not in self._tasks:
                self._tasks[what] = rich.add_task(what, total=total)
            rich.update(self._tasks[what], completed=done, total=total)
            if done >= total:
                rich.remove_task(self._tasks.pop(what))
                del self._began[what]

    def close(self) -> None:
        """Remove the bars."""
        if self._rich is not None:
            self._rich.stop()


def _started() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    console = Console(file=sys.__stderr__)  # which knows NO_COLOR and dumb terminals
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()),
        TimeRemainingColumn(compact=True),
    )
    made = RichProgress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    made.start()
    return made


class Counted:
    """Several blobs on their way, some at once, some perhaps twice, as one progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._lock = threading.Lock()
        self._done: dict[object, int] = {}

    def pieces(self, name: object, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the same pieces, and count them as progress of `name`, from the start."""
        count = 0
        for piece in pieces:
            yield piece
            count += len(piece)
            self.at(name, count)

    def at(self, name: object, count: int) -> None:
        """Note that `count` bytes of `name` are done."""
        with self._lock:
            self._done[name] = count
            self._progress(sum(self._done.values()), self._total)
