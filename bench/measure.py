"""Measure a command: wall time, processor time, peak memory, bytes written. Linux only."""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")
WATCH_S = 0.02


class Failed(Exception):
    """A command ended otherwise than it should: which, how, and its last line."""


@dataclass(frozen=True, slots=True)
class Run:
    """The cost of a command and its children. `rss_bytes` is that of the largest; `written_bytes` counts files, cached or not."""

    started_ns: int
    wall_s: float
    cpu_s: float
    rss_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A command under a name; `prepare` puts things back into the state before it, unmeasured."""

    name: str
    command: Sequence[str]
    prepare: Callable[[], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    status: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """All runs of one contender. `peak_bytes` is what all its processes together had at most."""

    runs: tuple[Run, ...]
    peak_bytes: int


def run(contender: Contender, watch: Callable[[int], None] | None = None, settle: bool = True) -> Run:
    """Run it once; Failed where it ends otherwise than it should."""
    contender.prepare()
    if settle:
        os.sync()  # what others have written so far is not this run's to wait for
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", LAUNCH, str(writing), *contender.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**usual_environment(), **contender.environment},
            cwd=contender.cwd,
            pass_fds=(writing,),
        )
        os.close(writing)
        watcher = threading.Thread(target=watch, args=(process.pid,)) if watch else None
        if watcher:
            watcher.start()
        output, _ = process.communicate()
        if watcher:
            watcher.join()
        words = os.read(reading, 1024).split()
    finally:
        os.close(reading)
    if len(words) != 6 or int(words[5]) != contender.status:
        last = output.decode(errors="replace").strip().splitlines()[-1:]
        raise Failed(f"{contender.name} failed: {last[0] if last else 'without a word'}")
    return Run(int(words[0]), float(words[1]), float(words[2]), int(words[3]), int(words[4]))


def usual_environment() -> dict[str, str]:
    """The environment, but with Python's compiled modules kept, as everybody has them."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def interleaved(
    contenders: Sequence[Contender],
    rounds: int,
    after_first: Callable[[], None] = lambda: None,
    settle: bool = True,
) -> list[Measured]:
    """Each contender once a round, in turn, so that a noisy moment meets all.

    One round more comes first: it warms the page cache, its memory is watched and its times are not kept, unless `rounds`
    is 0. `after_first` sees what it made.
    """
    peaks = [_Peak() for _ in contenders]
    first = [run(contender, peak.watch, settle) for contender, peak in zip(contenders, peaks, strict=True)]
    after_first()
    runs: list[list[Run]] = [[] if rounds else [measured] for measured in first]
    for _ in range(rounds):
        for contender, kept in zip(contenders, runs, strict=True):
            kept.append(run(contender, settle=settle))
    return [
        Measured(tuple(kept), max(peak.bytes, warm.rss_bytes, *(each.rss_bytes for each in kept)))
        for kept, peak, warm in zip(runs, peaks, first, strict=True)
    ]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """min, median and max of our figure by theirs, pair by pair."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """min, median and max."""
    return min(values), statistics.median(values), max(values)


class _Peak:
    """The most memory that a process's descendants had together, looked at every 20 ms or less often; shared pages counted once."""

    def __init__(self) -> None:
        self.bytes = 0

    def watch(self, pid: int) -> None:
        done = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(done, select.POLLIN)
            pause = WATCH_S
            while not poll.poll(pause * 1000):
                start = time.monotonic()
                self.bytes = max(self.bytes, sum(map(_pss, _descendants(pid))))
                pause = max(WATCH_S, 20 * (time.monotonic() - start))  # not to slow down what is watched
        finally:
            os.close(done)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo:
        current = todo.pop()
        try:
            threads = os.listdir(f"/proc/{current}/task")
            words = [Path(f"/proc/{current}/task/{thread}/children").read_text().split() for thread in threads]
        except OSError:
            continue  # it has ended
        below = [int(word) for children in words for word in children]
        found += below
        todo += below
    return found


def _pss(pid: int) -> int:
    """Proportional set size; 0 of a process that has ended or may not be looked at."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
