"""One command, measured: wall time, processor time, peak memory, bytes written. Linux only."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Of a command and all its children. Seconds; bytes; `written_bytes` is what went to block devices or files."""

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


def run(contender: Contender, environment: Mapping[str, str] | None = None) -> Run:
    """Run it once. CalledProcessError with its output where it fails."""
    contender.prepare()
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(
        contender.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, contender.command, output)
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, usage.ru_oublock * 512)


def interleaved(contenders: Sequence[Contender], rounds: int) -> dict[str, list[Run]]:
    """Each contender once a round, in turn, so that a noisy moment meets all; one unmeasured round first."""
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    for round_number in range(rounds + 1):
        for contender in contenders:
            measured = run(contender)
            if round_number:
                runs[contender.name].append(measured)
    return runs


def ratios(ours: Sequence[Run], theirs: Sequence[Run], figure: Callable[[Run], float]) -> tuple[float, float, float]:
    """min, median and max of our figure by theirs, pair by pair."""
    values = [figure(a) / figure(b) for a, b in zip(ours, theirs, strict=True) if figure(b)]
    return (min(values), statistics.median(values), max(values)) if values else (0.0, 0.0, 0.0)
