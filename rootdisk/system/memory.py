"""The C library's allocator: how much of what was freed it keeps."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
# Buffers of tars and chunks are smaller and are used again; what is larger is used once.
_ONCE_BYTES = 2 << 20
_KEPT_BYTES = 4 << 20


def return_large() -> None:
    """Have the allocator give large blocks back to the kernel when they are freed, and use one heap for all threads.

    By itself glibc keeps blocks as large as any that was freed, up to 32 MiB, and has a heap for each thread: after a
    kernel was decompressed, that is up to 30 MB which Python's objects cannot use. Other C libraries have no such settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _ONCE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
