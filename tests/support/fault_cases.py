"""Everything that can go wrong with the disk's blob at a registry: once, and always."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.faults import ALWAYS, Fault


@dataclass(frozen=True)
class Case:
    name: str
    faults: Callable[[], list[Fault]]
    error: str = ""  # what its message matches; a success where there is none


def _status(path: str, code: int, times: int = 1, **headers: str) -> Callable[[], list[Fault]]:
    return lambda: [Fault("status", path, times, status=code, headers=headers)]


def disk_cases(path: str) -> list[Case]:
    """Faults of the blob at `path`."""
    return [
        Case("short body", lambda: [Fault("short", path, 2, after=3_000_000)]),
        Case("short body, always", lambda: [Fault("short", path, ALWAYS)], "connection was closed"),
        Case("wrong bytes", lambda: [Fault("wrong", path, skip=1)]),
        Case("wrong bytes, always", lambda: [Fault("wrong", path, ALWAYS)], "chunk at"),
        Case("longer part", lambda: [Fault("long", path, ALWAYS)]),
        Case("smaller parts", lambda: [Fault("part", path, ALWAYS, after=100_000)]),
        Case("parts of one byte", lambda: [Fault("part", path, ALWAYS, after=1)], "only 1 of the"),
        Case("wrong Content-Range", lambda: [Fault("shifted", path, skip=1)], "got 'bytes"),
        Case("whole for a part", lambda: [Fault("whole", path, skip=1)]),
        Case("whole for every part", lambda: [Fault("whole", path, ALWAYS)]),
        Case("429", _status(path, 429, 2, Retry_After="1")),
        Case("429 for an hour", _status(path, 429, ALWAYS, Retry_After="3600"), "429"),
        Case("5xx burst", lambda: [Fault("status", path, 1, skip=n, status=500 + n) for n in (0, 2, 3, 4)]),
        Case("5xx, always", _status(path, 503, ALWAYS), "503"),
        Case("404", _status(path, 404, ALWAYS), "404"),
        Case("403", _status(path, 403, ALWAYS), "403"),
        Case("stall", lambda: [Fault("stall", path, 2, after=1_500_000, seconds=3)]),
        Case("stall, always", lambda: [Fault("stall", path, ALWAYS, seconds=2)], "no answer in time"),
        Case("reset", lambda: [Fault("reset", path, 3, after=2_000_000)]),
        Case("reset, always", lambda: [Fault("reset", path, ALWAYS, after=0)], "connection was closed"),
        Case("slow drip", lambda: [Fault("drip", path, ALWAYS, seconds=0.05)], "bytes in|no answer in time"),
        Case("slow drip of a head", lambda: [Fault("drip-head", path, ALWAYS, seconds=0.05)], "no answer in time"),
        Case("redirect loop", lambda: [Fault("redirect", path, ALWAYS)], "more than 5 redirects"),
        Case("huge head", lambda: [Fault("huge-head", path, ALWAYS)], "not HTTP"),
        Case(
            "huge head, once", lambda: [Fault("huge-head", path)], "not HTTP"
        ),  # no failure of the network: not tried again
    ]
