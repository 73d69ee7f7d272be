"""How much work something is, in instructions of the interpreter: the same on every machine and on every day."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

LINEAR = 2.5  # at most so much more work for twice the input; four times would be quadratic


def instructions(work: Callable[[], object]) -> int:
    """Run `work` and count its byte code, that of all it calls included; what C does in one call counts as one."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "opcode":
            count += 1
        elif event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def growth(work: Callable[[int], Callable[[], object]], count: int) -> float:
    """Say how many times the work grows from an input of `count` to one of twice that.

    `work(n)` makes the input, which is not counted, and returns what is to be counted.
    """
    work(4)()  # what is loaded and remembered once
    return instructions(work(2 * count)) / instructions(work(count))
