"""The progress of a step: on a terminal a line that is written over; elsewhere a line at its start, every 30 s and at its end."""

from __future__ import annotations

import _thread
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rootdisk.text import one_line

if TYPE_CHECKING:
    import threading

EVERY_S = 0.1
QUIET_S = 1.0  # what is done by then needs no bar
LINE_QUIET_S = 2.0  # what is done by then needs no lines
LINE_EVERY_S = 30.0

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@contextlib.contextmanager
def shown_progress(what: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """Yield a function that shows the progress of `what` on standard error; None with `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(what) as bar:
            yield bar
    else:
        with Lines() as lines:
            yield lines.step(what)


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Progress]:
    start = time.monotonic()
    shown = start + QUIET_S - EVERY_S

    def show(done: int, total: int) -> None:
        """Write the line, unless it was written just now."""
        nonlocal shown
        now = time.monotonic()
        if now - shown < EVERY_S or not done:
            return
        shown = now
        rate = done / (now - start)
        left = (total - done) / rate
        text = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB, {rate / 1e6:.0f} MB/s, {left:.0f} s left"
        sys.stderr.write(f"\r{f'{what[: 77 - len(text)]} {text}':<78}")

    try:
        yield show
    finally:
        if shown > start + QUIET_S - EVERY_S:
            sys.stderr.write("\r" + " " * 78 + "\r")


class Lines:
    """Progress as lines, for steps that may run at the same time. A quick step gets no line."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()  # threading, which takes a while to load, only if there is a step
        self._watcher: threading.Thread | None = None
        self._ended: threading.Event | None = None
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._state: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._ended is not None and self._watcher is not None:
            self._ended.set()
            self._watcher.join()
        with self._lock:
            for what in list(self._began):
                self._finish(what, is_whole=kind is None)

    def step(self, what: str) -> Progress:
        """Return the progress function of one step, for any thread."""
        return lambda done, total: self._note(what, done, total)

    def _note(self, what: str, done: int, total: int) -> None:
        with self._lock:
            self._began.setdefault(what, time.monotonic())
            self._state[what] = done, total
            if self._watcher is None:
                self._start()
            if done >= total:
                self._finish(what, is_whole=True)

    def _start(self) -> None:
        import threading

        self._ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(self._ended,), daemon=True)
        watcher.start()
        self._watcher = watcher

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(0.25):
            with self._lock:
                now = time.monotonic()
                for what, began in self._began.items():
                    if what not in self._said and now - began >= LINE_QUIET_S:
                        self._say(what, f"{what} …", now)
                    elif what in self._said and now - self._said[what] >= LINE_EVERY_S:
                        done, total = self._state[what]
                        left = f", {(total - done) * (now - began) / done:.0f} s left" if done else ""
                        self._say(what, f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB{left}", now)

    def _say(self, what: str, text: str, now: float) -> None:
        self._said[what] = now
        print(one_line(text), file=sys.stderr, flush=True)

    def _finish(self, what: str, *, is_whole: bool) -> None:
        began, (_, total) = self._began.pop(what), self._state.pop(what)
        if self._said.pop(what, None) is not None and is_whole:
            text = f"{what}: {total / 1e6:.0f} MB in {time.monotonic() - began:.0f} s"
            print(one_line(text), file=sys.stderr, flush=True)
