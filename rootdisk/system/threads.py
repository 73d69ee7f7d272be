"""Threads that end with their block. concurrent.futures would take longer to load than a small disk to fetch."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

WAKE_S = 0.2  # a signal that comes just before Python waits for a lock does not end the wait: look again


class Running:
    """Actions, each on a thread of its own."""

    def __init__(self, actions: Sequence[Callable[[], None]]) -> None:
        self._ended = threading.Condition()
        self._left = len(actions)
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, args=(action,)) for action in actions]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all actions have ended, at most `seconds`; return whether they have. Raise the first error at once."""

        def is_over() -> bool:
            """Return whether there is nothing to wait for."""
            return not self._left or self._error is not None

        with self._ended:
            if seconds is not None:
                self._ended.wait_for(is_over, seconds)
            else:
                while not self._ended.wait_for(is_over, WAKE_S):
                    pass
            if self._error is not None:
                raise self._error
            return not self._left

    def join(self) -> None:
        """Wait until all threads have ended, even if Ctrl-C is pressed twice."""
        while True:
            try:
                for thread in self._threads:
                    if thread.ident is not None:
                        thread.join()
                return
            except KeyboardInterrupt:
                continue

    def _run(self, action: Callable[[], None]) -> None:
        error = None
        try:
            action()
        except BaseException as err:
            error = err
        with self._ended:
            self._left -= 1
            self._error = self._error or error
            self._ended.notify()


@contextlib.contextmanager
def running(actions: Sequence[Callable[[], None]], interrupt: Callable[[], None] = lambda: None) -> Iterator[Running]:
    """Run each of `actions` on a thread of its own while the block runs. All have ended when the block ends.

    `interrupt` makes actions end early; it is called if this program is to end, for example by Ctrl-C, also while threads start.
    """
    threads = Running(actions)
    try:
        threads.start()
        yield threads
    except BaseException as err:
        if not isinstance(err, Exception):
            interrupt()
        raise
    finally:
        threads.join()


def for_each(
    items: Iterable[T], action: Callable[[T], None], count: int, interrupt: Callable[[], None] = lambda: None
) -> None:
    """Call `action` with each of `items`, on `count` threads. All have ended when this returns or raises.

    `interrupt` is that of `running`.

    Raises:
        Exception: The first error of an action. Actions in progress are finished, no other is begun.
    """
    waiting = deque(items)

    def work() -> None:
        """Do the remaining work, until there is none or something fails."""
        try:
            while True:
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                action(item)
        except BaseException:
            waiting.clear()
            raise

    def stop() -> None:
        """Start no more work, and interrupt what has started."""
        waiting.clear()
        interrupt()

    with running([work] * min(count, len(waiting)), stop) as threads:
        try:
            threads.wait()
        except BaseException:
            waiting.clear()
            raise
