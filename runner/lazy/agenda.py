"""Decide what to fetch next: reads that guests wait for first, then the traced boot, then the rest in disk order.

Threads that fetch share one agenda with the server's main thread. It knows chunks by number and does no input or output.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rootdisk.artifact.format import Chunk
from runner.store.chunks import GAP_BYTES

FETCHERS = 4  # threads
BESIDE_GUESTS = 1  # fetchers that fill while guests use the disk
FIRST_BYTES = 256 << 10  # of a request for the traced boot: all fetchers have some of it
FILL_BYTES = 1 << 20  # of a fill's request while guests use the disk
HURRY_BYTES = 8 << 20  # of a fill's request while nobody reads
WINDOW = 2  # chunks that are fetched ahead of a guest that reads one after the other
GIVE_WAY_S = 5.0  # the longest time that a fill waits for guests' reads between two chunks
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # after a failure, before the next attempt
PAUSE_MAX_S = 2.0  # while a guest waits
_MISSING, _BUSY, _THERE = 0, 1, 2


class Job(NamedTuple):
    """Chunks to get. A fill makes way for the reads of guests."""

    chunks: tuple[Chunk, ...]
    is_fill: bool


class Agenda:
    """The state of every chunk, and the order of work."""

    def __init__(self, chunks: Sequence[Chunk], first: Sequence[int]) -> None:
        """Plan for `chunks`. The numbers `first` come first of a fill."""
        self.chunks = chunks
        self._state = bytearray(_THERE if chunk.zero else _MISSING for chunk in chunks)
        self._numbers = {chunk.offset: number for number, chunk in enumerate(chunks)}
        self._changed = threading.Condition()
        self._wanted: deque[int] = deque()
        self._first = [number for number in first if not chunks[number].zero]
        rest = (number for number, chunk in enumerate(chunks) if not chunk.zero)
        self._order = deque(dict.fromkeys((*self._first, *rest)))
        self._left_of_first = set(self._first)
        self._wrong: set[int] = set()  # chunks that were wrong at the registry: each is asked for alone
        self._last_read = -1
        self.data_bytes = sum(chunk.length for chunk in chunks if not chunk.zero)
        self.filled_bytes = 0
        self.left = len(self._order)
        self.is_in_use = False  # a guest may read
        self.is_hurried = False  # somebody waits for the complete disk
        self.may_fill = True
        self.is_alone = True  # nothing has been fetched: one request shows what the server can do
        self.takes_all = False  # the server ignores ranges
        self._filling = self._fetching = 0
        self._failures = 0
        self._again_at = 0.0
        self._has_ended = False

    def is_there(self, number: int) -> bool:
        """Return whether a chunk can be read from the file."""
        return self._state[number] == _THERE

    def number(self, chunk: Chunk) -> int:
        """Return the number of a chunk."""
        return self._numbers[chunk.offset]

    def want(self, number: int) -> None:
        """Get a chunk that a guest waits for before everything else, and those that it will read next."""
        with self._changed:
            follows = number == self._last_read + 1
            self._last_read = number
            ahead = range(number + 1, min(number + 1 + WINDOW, len(self.chunks))) if follows else ()
            for each in (number, *ahead):
                if self._state[each] == _MISSING and each not in self._wanted:
                    self._wanted.append(each)
            self._again_at = min(self._again_at, time.monotonic() + PAUSE_MAX_S)
            self._changed.notify_all()

    def change(self, *, in_use: bool, hurried: bool, may_fill: bool) -> None:
        """Say who uses the disk, and whether it may be filled."""
        with self._changed:
            self.is_in_use, self.is_hurried, self.may_fill = in_use, hurried, may_fill
            self._changed.notify_all()

    def end(self) -> None:
        """Make `take` return None from now on."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def forget(self) -> None:
        """Start again with nothing but holes: the file was replaced."""
        with self._changed:
            self._state = bytearray(_THERE if chunk.zero else _MISSING for chunk in self.chunks)
            self._order = deque(dict.fromkeys((*self._first, *(n for n, c in enumerate(self.chunks) if not c.zero))))
            self._left_of_first = set(self._first)
            self.left, self.filled_bytes = len(self._order), 0
            self._changed.notify_all()

    def take(self) -> Job | None:
        """Wait for the next work and return it; None if there will be no more."""
        with self._changed:
            while True:
                if self._has_ended or not self.left:
                    return None
                wait_s = self._again_at - time.monotonic()
                if wait_s <= 0 and not (self.is_alone and self._fetching):
                    if numbers := self._next_wanted():
                        return self._job(numbers, is_fill=False)
                    if self._may_fill() and (numbers := self._next_of_fill()):
                        return self._job(numbers, is_fill=True)
                self._changed.wait(wait_s if wait_s > 0 else None)

    def reserve(self) -> Job:
        """Return a job for a random chunk with data, which is missing if any is. Nobody else gets it meanwhile."""
        with self._changed:
            missing = [number for number, state in enumerate(self._state) if state == _MISSING]
            numbers = missing or [number for number, chunk in enumerate(self.chunks) if not chunk.zero]
            number = numbers[int.from_bytes(os.urandom(8), "little") % len(numbers)]
            self._fetching += 1
            if missing:
                self._state[number] = _BUSY
            return Job((self.chunks[number],), False)

    def done(self, chunk: Chunk, *, is_fetched: bool) -> None:
        """Note that a chunk of a job is in the file."""
        number = self._numbers[chunk.offset]
        with self._changed:
            if self._state[number] != _THERE:
                self._state[number] = _THERE
                self.filled_bytes += chunk.length
                self.left -= 1
            self._left_of_first.discard(number)
            self._wrong.discard(number)
            if is_fetched:
                self.is_alone = False
                self._failures = 0
            if not self.left or is_fetched:
                self._changed.notify_all()

    def over(self, job: Job, *, failed: bool, is_wrong: bool, is_wanted: Callable[[int], bool]) -> None:
        """End a job. What it has not got is missing again; what a guest waits for comes first again.

        `is_wrong`: the first chunk that it has not got is wrong at the registry. So others come first.
        """
        with self._changed:
            self._fetching -= 1
            self._filling -= job.is_fill
            if failed:
                self._again_at = time.monotonic() + PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
                self._failures += 1
            missing = [n for n in map(self.number, job.chunks) if self._state[n] == _BUSY]
            if is_wrong:
                self._wrong |= set(missing[:1])
            for number in reversed(missing):
                self._state[number] = _MISSING
                if is_wanted(number):
                    self._wanted.appendleft(number)
                    self._again_at = min(self._again_at, time.monotonic() + PAUSE_MAX_S)
                elif number in self._wrong:
                    self._order.append(number)
                    self._left_of_first.discard(number)
                else:
                    self._order.appendleft(number)
            if self.takes_all:
                self._order = deque(number for number, state in enumerate(self._state) if state == _MISSING)
            self._changed.notify_all()

    def give_way(self) -> None:
        """Wait, in the middle of a fill, as long as a guest waits for something else."""
        with self._changed:
            if self.is_in_use and not self._left_of_first:
                self._changed.wait_for(lambda: not self._is_guest_waiting() or self._has_ended, GIVE_WAY_S)

    def let_guests_pass(self) -> None:
        """Wait, in the middle of what no guest reads, as long as one waits, or is about to read what comes first."""
        with self._changed:
            if self.is_in_use and not self.is_hurried:
                self._changed.wait_for(lambda: not self._are_guests_first() or self._has_ended, GIVE_WAY_S)

    def _are_guests_first(self) -> bool:
        return self._is_guest_waiting() or (self.may_fill and bool(self._left_of_first))

    def _is_guest_waiting(self) -> bool:
        return bool(self._wanted) or self._fetching > self._filling

    def _may_fill(self) -> bool:
        if not self.may_fill:
            return False
        if not self.is_in_use or self.is_hurried:
            return True
        while self._order and self._state[self._order[0]] != _MISSING:
            self._order.popleft()
        if self._left_of_first:  # the traced boot: a guest is about to read it
            return self._filling < FETCHERS - 1 and bool(self._order) and self._order[0] in self._left_of_first
        return self._filling < BESIDE_GUESTS and not self._is_guest_waiting()

    def _next_wanted(self) -> list[int]:
        """Take the oldest read, those near it in the blob, and what is missing between them: they share a request."""
        while self._wanted and self._state[self._wanted[0]] != _MISSING:
            self._wanted.popleft()
        if not self._wanted:
            return []
        if self._wanted[0] in self._wrong:
            return [self._wanted.popleft()]
        chunk = self.chunks[self._wanted[0]]
        near = [
            number
            for number in self._wanted
            if self._state[number] == _MISSING
            and number not in self._wrong
            and abs(self.chunks[number].blob_offset - chunk.blob_end) <= GAP_BYTES
        ]
        numbers = [
            number
            for number in range(min(near), max(near) + 1)
            if self._state[number] == _MISSING and number not in self._wrong
        ]
        self._wanted = deque(number for number in self._wanted if number not in numbers)
        return numbers

    def _next_of_fill(self) -> list[int]:
        limit = FILL_BYTES if self.is_in_use and not self.is_hurried else HURRY_BYTES
        if self._left_of_first:
            limit = FIRST_BYTES
        numbers: list[int] = []
        count = 0
        for number in self._pop():
            is_other = bool(numbers) and numbers[0] in self._left_of_first and number not in self._left_of_first
            if is_other or (numbers and number in self._wrong):
                self._order.appendleft(number)
                break
            numbers.append(number)
            count += self.chunks[number].blob_length
            if count >= limit or number in self._wrong:
                break
        return sorted(numbers)

    def _pop(self) -> Iterator[int]:
        while self._order:
            number = self._order.popleft()
            if self._state[number] == _MISSING:
                yield number

    def _job(self, numbers: Iterable[int], *, is_fill: bool) -> Job:
        if self.takes_all:  # every response is the complete blob: get everything that is missing from one
            numbers = [number for number, state in enumerate(self._state) if state == _MISSING]
        numbers = list(numbers)
        for number in numbers:
            self._state[number] = _BUSY
        self._fetching += 1
        self._filling += is_fill
        return Job(tuple(self.chunks[number] for number in numbers), is_fill)
