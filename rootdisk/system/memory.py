"""The C library's allocator: how much freed memory it keeps."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_BUFFER_MAX_BYTES = 2 << 20
_KEPT_BYTES = 8 << 20


def keep_buffers() -> None:
    """Have the allocator keep buffers of tars and chunks, and nothing larger; and use one heap for all threads.

    By itself glibc keeps blocks as large as any that was freed, up to 32 MiB, in a heap for each thread: after a kernel was
    decompressed, that is up to 30 MB which Python's objects cannot use. Before, it gives each buffer back to the kernel, and
    half of the page faults of a fetch or build are for getting it again. Other C libraries have no such settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _BUFFER_MAX_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
