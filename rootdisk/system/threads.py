"""Threads that have ended when their block has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def pool_of(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads never outlive the block, nor what it opened; not even where Ctrl-C is pressed twice."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        while True:
            try:
                pool.shutdown(cancel_futures=True)
                break
            except KeyboardInterrupt:
                continue
