"""Reads of guests: answered at once, when their chunks are there, or with EIO if these cannot be fetched.

A read waits as long as chunks that it needs can still come. It fails with EIO after WAIT_S seconds: without any success, or
of attempts to get the same chunk, if others can be fetched.
"""

from __future__ import annotations

import contextlib
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable

from rootdisk.artifact.format import Chunk
from rootdisk.errors import RootdiskError
from rootdisk.text import one_line
from runner.lazy import nbd
from runner.lazy.agenda import Agenda
from runner.lazy.guests import Asker, Read

WAIT_S = 60.0


def note(text: str) -> None:
    """Write a line to the log of the server. It is on the same disk as the store, which may be full."""
    with contextlib.suppress(OSError):
        print(one_line(text), file=sys.stderr, flush=True)


class Reads:
    """The reads that wait, and the reason if chunks cannot be fetched."""

    def __init__(self, agenda: Agenda, fd: int, tell: Callable[[str, str], None]) -> None:
        """Answer from the file `fd`. `tell` passes on what guests cannot see: a word and a text."""
        self._agenda, self._fd, self._tell = agenda, fd, tell
        self._starts = [chunk.offset for chunk in agenda.chunks]
        self._waits: dict[int, list[Read]] = {}  # by the number of a chunk that they wait for
        self._failing: dict[int, float] = {}  # chunks whose last attempt has failed, and when the first one did
        self._since: float | None = None  # when attempts began to fail, without a success
        self._is_told = False
        self._longest_wait_s = 0.0
        self.is_complete = False  # every read can be answered
        self.problem: RootdiskError | None = None  # why chunks cannot be fetched at the moment
        self.count = 0  # of reads so far
        self.waited = 0  # reads that were not answered at once

    @property
    def reason(self) -> str:
        """The reason for which chunks cannot be fetched at the moment; "" if they can."""
        return one_line(str(self.problem)) if self.problem is not None and not self.is_complete else ""

    @property
    def stuck_at(self) -> int | None:
        """The number of a chunk that reads wait for, and that cannot be fetched at the moment; None if no read waits like that."""
        return min(self._failing.keys() & self._waits.keys(), default=None)

    @property
    def longest_wait_s(self) -> float:
        """The longest time that a read has waited, or waits now."""
        now = time.monotonic()
        return max([self._longest_wait_s, *(now - read.since for reads in self._waits.values() for read in reads)])

    def is_wanted(self, number: int) -> bool:
        """Return whether a guest waits for a chunk. Any thread may ask."""
        return number in self._waits

    def read(self, guest: Asker, cookie: int, offset: int, length: int) -> None:
        """Answer a read of a guest, at once or when its chunks are there."""
        self.count += 1
        if self.is_complete or not (missing := self._missing(offset, length)):
            guest.answer(self._fd, cookie, offset, length)
            return
        read = Read(guest, cookie, offset, length, missing, time.monotonic())
        self.waited += 1
        for number in sorted(missing):
            self._waits.setdefault(number, []).append(read)
            self._failing.pop(number, None)  # it is tried at least once more
            self._agenda.want(number)

    def drop(self, guest: Asker) -> None:
        """Forget the reads of a guest that is gone."""
        for number in list(self._waits):
            self._keep(number, [read for read in self._waits[number] if read.guest is not guest])

    def arrived(self, chunks: Iterable[Chunk], *, is_fetched: bool) -> None:
        """Answer the reads that waited for `chunks` only."""
        for chunk in chunks:
            self._arrived(self._agenda.number(chunk))
        if not is_fetched:
            return
        self._since = None
        if self.problem is not None and not self._failing.keys() & self._waits.keys():
            self._failing.clear()
            self._go_on("the disk is being fetched again")

    def failed(self, chunks: Iterable[Chunk], error: RootdiskError) -> None:
        """Note that an attempt to get `chunks` has failed."""
        if str(error) != str(self.problem):
            note(str(error))
        self.problem = error
        now = time.monotonic()
        self._since = self._since or now
        for chunk in chunks:
            self._failing.setdefault(self._agenda.number(chunk), now)

    def stuck(self, error: RootdiskError) -> None:
        """Note that the complete disk cannot get its name."""
        self.problem = error
        self._since = self._since or time.monotonic()

    def look(self) -> None:
        """Do what is due."""
        if not self._waits or self.problem is None:
            return
        if not self._is_told and (self._since is not None or self._failing.keys() & self._waits.keys()):
            self._is_told = True
            self._tell("waits", f"reads of the disk wait, for {WAIT_S:g} s at most: {self.problem}")
        limit = time.monotonic() - WAIT_S
        is_long = self._since is not None and self._since <= limit
        for number, since in list(self._failing.items()):
            if number in self._waits and (is_long or since <= limit):
                self._fail(number)

    def complete(self) -> None:
        """Answer all reads: the file is complete."""
        self.is_complete = True
        for number in list(self._waits):
            self._arrived(number)
        self._go_on("the disk is complete")

    def _go_on(self, text: str) -> None:
        self.problem = self._since = None
        if self._is_told:
            self._is_told = False
            self._tell("goes on", text)

    def _missing(self, offset: int, length: int) -> set[int]:
        first = bisect_right(self._starts, offset) - 1
        last = bisect_right(self._starts, offset + length - 1) - 1
        return {number for number in range(first, last + 1) if not self._agenda.is_there(number)}

    def _keep(self, number: int, reads: list[Read]) -> None:
        if reads:
            self._waits[number] = reads
        else:
            del self._waits[number]

    def _arrived(self, number: int) -> None:
        self._failing.pop(number, None)
        for read in self._waits.pop(number, ()):
            read.missing.discard(number)
            if not read.missing:
                self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - read.since)
                read.guest.answer(self._fd, read.cookie, read.offset, read.length)

    def _fail(self, number: int) -> None:
        """Fail the reads that wait for a chunk."""
        for read in self._waits.pop(number, ()):
            self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - read.since)
            for other in read.missing & self._waits.keys():
                self._keep(other, [each for each in self._waits[other] if each is not read])
            read.guest.refuse(read.cookie, nbd.EIO)
        where = f"chunk {number}, at byte {self._agenda.chunks[number].offset} of the disk"
        self._tell("lost", f"reads of the disk failed, because {where}, cannot be fetched: {self.problem}")
