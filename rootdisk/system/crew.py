"""A crew of threads that share work. A thread that waits for a result does other work meanwhile, so none sleeps while there is work.

A thread that is woken for every piece may have to wait behind another one while a processor is idle: the kernel does not
move waiting threads to a processor that was idle for less than half a millisecond. bench/README.md has the figures.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """Work that is done once, by the first thread that runs it."""

    __slots__ = ("_begun", "_ended", "_error", "_result", "_work")

    def __init__(self, work: Callable[..., T], *arguments: Any) -> None:
        self._work: tuple[Callable[..., T], tuple[Any, ...]] | None = (work, arguments)
        self._begun = threading.Lock()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._result: T

    def run(self) -> None:
        """Do the work, unless a thread has begun to. An error is raised by `result`; also here, if this thread is to end."""
        if not self._begun.acquire(blocking=False):
            return
        assert self._work is not None
        work, arguments = self._work
        self._work = None  # what it holds is free when it is done
        try:
            self._result = work(*arguments)
        except BaseException as err:
            self._error = err
            if not isinstance(err, Exception):
                raise
        finally:
            self._ended.set()

    def cancel(self) -> None:
        """Keep the work from being begun; if a thread has begun it, wait until it is done."""
        if self._begun.acquire(blocking=False):
            self._work = None
            self._ended.set()
        self._ended.wait()

    @property
    def is_ended(self) -> bool:
        """Return whether the result is there."""
        return self._ended.is_set()

    def result(self) -> T:
        """Return the result, or raise the error of the work; first wait until it is done."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result


class Crew:
    """Threads that share work; a context manager. What is still waiting at the end is not begun."""

    def __init__(self, size: int) -> None:
        """`size` counts the thread that waits for the results."""
        self._jobs: deque[Job[Any]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._working = threading.local()
        self._threads = [threading.Thread(target=self._work, name=f"crew-{number}") for number in range(1, size)]
        self.size = size

    def submit(self, work: Callable[..., T], *arguments: Any) -> Job[T]:
        """Have `work` done by the first thread that has time."""
        job = Job(work, *arguments)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job

    def result(self, job: Job[T]) -> T:
        """Return the result of `job`, or raise its error. Until it is done, do it, or if another thread does that, other work.

        Work that waits for other work does only that: if it did any, it could wait for itself.
        """
        self._run(job)
        if not self._is_working():
            while not job.is_ended and (other := self._next()) is not None:
                self._run(other)
        return job.result()

    def _next(self) -> Job[Any] | None:
        with self._changed:
            return self._jobs.popleft() if self._jobs else None

    def _is_working(self) -> bool:
        """Return whether this thread is doing a job."""
        return getattr(self._working, "now", False)

    def _run(self, job: Job[Any]) -> None:
        before, self._working.now = self._is_working(), True
        try:
            job.run()
        finally:
            self._working.now = before

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if self._is_closed:
                    return
                job = self._jobs.popleft()
            self._run(job)

    def __enter__(self) -> Crew:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # too many threads, or Ctrl-C
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
