"""A thread pool whose threads end with its block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def pool_of(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads. All have ended when the block ends, even if Ctrl-C is pressed twice."""
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
