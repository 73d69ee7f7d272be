"""What a target is: a function that reads bytes as one of our parsers does, and inputs to begin with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Target(NamedTuple):
    """`read` returns if the bytes were read, and raises RootdiskError if they were refused; all else is a fault."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()  # that a fuzzer puts in
    max_bytes: int = 4096
    refuses: bool = True  # whether some inputs are refused
    few: int = 400  # inputs by chance in every run of the tests; fewer for slow ones


@cache
def folder() -> Path:
    """A directory of this process; harness.py removes it."""
    return Path(tempfile.mkdtemp())


def in_file(data: bytes) -> int:
    """A descriptor of an unnamed file with `data`; the caller closes it."""
    fd = os.memfd_create("fuzz")
    os.write(fd, data)
    return fd
