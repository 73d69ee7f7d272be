"""Waiting for a condition, with a limit; nothing in the tests sleeps and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def until(condition: Callable[[], _T], timeout_s: float = 120, every_s: float = 0.02) -> _T:
    """Wait until `condition()` is true, and return its value; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {timeout_s:g} s"
        time.sleep(every_s)
    return value
