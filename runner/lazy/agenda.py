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
BESIDE_GUESTS = 1  # fetchers that fill while guests use the disk: more take processor time that a start needs
FIRST_BYTES = 256 << 10  # of a request for the traced boot, of which all fetchers have some, and of the first of a fill
FILL_MAX_BYTES = 8 << 20  # of a fill's request
QUICK_S, LONG_S = 0.1, 0.2  # a fill's request is made larger if it took less, smaller if it took more: a read may come
FIRST_GAP_BYTES = 128 << 10  # between chunks of the traced boot, fetched with them: cheaper than another request
AHEAD_MAX_BYTES = 2 << 20  # of a request for what follows a read that had to wait: often it is read next
CALM_S = 0.5  # after a read that had to wait, until the fill goes on: often more follow
GIVE_WAY_S = 5.0  # the longest time that a fill waits for guests' reads
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
        self._first = _in_runs(chunks, first)
        rest = (number for number, chunk in enumerate(chunks) if not chunk.zero)
        self._order = deque(dict.fromkeys((*self._first, *rest)))
        self._left_of_first = set(self._first)
        self._wrong: set[int] = set()  # chunks that were wrong at the registry: each is asked for alone
        self.data_bytes = sum(chunk.length for chunk in chunks if not chunk.zero)
        self.filled_bytes = 0
        self.left = len(self._order)
        self.is_in_use = False  # a guest may read
        self.is_starting = False  # no guest has read yet: their kernels start
        self.is_hurried = False  # somebody waits for the complete disk
        self.may_fill = True
        self.is_alone = True  # nothing has been fetched: one request shows what the server can do
        self.takes_all = False  # the server ignores ranges
        self._filling = self._fetching = 0
        self._fill_bytes = FIRST_BYTES  # of the next request
        self._is_long = False  # the last request took long
        self._waited_at = self._way_given_at = -GIVE_WAY_S
        self._patient_until: float | None = None  # for what no guest reads
        self._failures = 0
        self._again_at = 0.0
        self._has_ended = False

    def is_there(self, number: int) -> bool:
        """Return whether a chunk can be read from the file."""
        return self._state[number] == _THERE

    def number(self, chunk: Chunk) -> int:
        """Return the number of a chunk."""
        return self._numbers[chunk.offset]

    def is_zero_between(self, chunk: Chunk, other: Chunk) -> bool:
        """Return whether only zero chunks are between two chunks."""
        return all(self.chunks[number].zero for number in range(self.number(chunk) + 1, self.number(other)))

    def want(self, number: int) -> None:
        """Get a chunk that a guest waits for before everything else."""
        with self._changed:
            self._note_wait()
            if self._state[number] == _MISSING and number not in self._wanted:
                self._wanted.append(number)
            self._again_at = min(self._again_at, time.monotonic() + PAUSE_MAX_S)
            self._changed.notify_all()

    def change(self, *, in_use: bool, hurried: bool, may_fill: bool, starting: bool = False) -> None:
        """Say who uses the disk, and whether it may be filled."""
        with self._changed:
            if self.is_starting and not starting:
                self._note_wait()  # soon
            self.is_in_use, self.is_hurried, self.may_fill, self.is_starting = in_use, hurried, may_fill, starting
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
                now = time.monotonic()
                wait_s = self._again_at - now
                if wait_s <= 0 and not (self.is_alone and self._fetching):
                    if numbers := self._next_wanted():
                        return self._job(numbers, is_fill=False)
                    if self._may_fill():
                        wait_s = self._calm_at(now) - now
                        if wait_s <= 0 and (numbers := self._next_of_fill()):
                            self._way_given_at = now
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

    def over(
        self, job: Job, *, failed: bool, is_wrong: bool, is_wanted: Callable[[int], bool], took_s: float = 0.0
    ) -> None:
        """End a job. What it has not got is missing again; what a guest waits for comes first again.

        `is_wrong`: the first chunk that it has not got is wrong at the registry. So others come first.
        """
        with self._changed:
            self._fetching -= 1
            self._filling -= job.is_fill
            if not job.is_fill:
                self._note_wait()
            elif not failed:
                self._adapt(job, took_s)
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

    def await_calm(self) -> int:
        """Wait, with what no guest reads, while guests are about to begin, then while they read, for GIVE_WAY_S in all.

        Return how much may be asked for then.
        """
        with self._changed:
            while not self._has_ended and self.left and self.is_in_use and not self.is_hurried:
                now = time.monotonic()
                wait_s: float | None = None
                if not self.is_starting and not (self.may_fill and self._left_of_first):
                    self._patient_until = self._patient_until or now + GIVE_WAY_S
                    wait_s = min(self._calm_at(now), self._patient_until) - now
                    if wait_s <= 0:
                        break
                self._changed.wait(wait_s)
            return self._fill_bytes

    def _note_wait(self) -> None:
        now = time.monotonic()
        if now > self._waited_at + CALM_S:
            self._way_given_at = now
        self._waited_at = now

    def _adapt(self, job: Job, took_s: float) -> None:
        """Choose the size of the next requests, so that a read need not wait long for a request in flight."""
        is_full = sum(chunk.blob_length for chunk in job.chunks) >= self._fill_bytes
        was_long, self._is_long = self._is_long, took_s > LONG_S
        if self._is_long and was_long:  # not by chance: the host's disk may have taken the time
            self._fill_bytes = max(self._fill_bytes // 2, FIRST_BYTES)
        elif took_s < QUICK_S and is_full:
            self._fill_bytes = min(self._fill_bytes * 2, FILL_MAX_BYTES)

    def _calm_at(self, now: float) -> float:
        """Return the time until which a fill waits: no read has waited for a while, or the fill for too long."""
        if not self.is_in_use or self.is_hurried or self.is_starting or self._left_of_first:
            return now
        calm_at = (now if self._is_guest_waiting() else self._waited_at) + CALM_S
        return min(calm_at, self._way_given_at + GIVE_WAY_S)

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
        return self._filling < BESIDE_GUESTS

    def _next_wanted(self) -> list[int]:
        """Take the oldest read, reads near it in the blob, the missing chunks between them, and those that follow.

        They share a request, so that what is read next comes after what is waited for.
        """
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
        numbers += self._ahead_of(numbers[-1])
        self._wanted = deque(number for number in self._wanted if number not in numbers)
        return numbers

    def _ahead_of(self, number: int) -> list[int]:
        """Return the chunks that follow a chunk in the blob and are missing, as far as they are one range."""
        if not self.may_fill or self.is_hurried or self._left_of_first:
            return []
        end = self.chunks[number].blob_end + min(self._fill_bytes, AHEAD_MAX_BYTES)
        numbers: list[int] = []
        for each in range(number + 1, len(self.chunks)):
            chunk = self.chunks[each]
            if chunk.blob_offset >= end or self._state[each] == _BUSY or each in self._wrong:
                break
            if self._state[each] == _MISSING:
                numbers.append(each)
            elif not chunk.zero:
                break
        return numbers

    def _next_of_fill(self) -> list[int]:
        limit = FILL_MAX_BYTES if self.is_hurried else self._fill_bytes
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


def _in_runs(chunks: Sequence[Chunk], numbers: Iterable[int]) -> list[int]:
    """Order chunks by the first use of each run in the blob, including the small gaps in a run."""
    use = {number: place for place, number in enumerate(numbers) if not chunks[number].zero}
    runs: list[list[int]] = []
    for number in sorted(use):
        last = runs[-1][-1] if runs else None
        if last is not None and chunks[number].blob_offset - chunks[last].blob_end <= FIRST_GAP_BYTES:
            runs[-1] += (each for each in range(last + 1, number + 1) if not chunks[each].zero)
        else:
            runs.append([number])
    runs.sort(key=lambda run: min(use[number] for number in run if number in use))
    return [number for run in runs for number in run]
