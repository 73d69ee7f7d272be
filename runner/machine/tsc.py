"""Measure the frequency of the host's time stamp counter, for guests under TCG on x86.

Such a guest reads the counter of the host, and on `microvm` it can only calibrate it against the PIT. On a busy host this
calibration (arch/x86/kernel/tsc.c) sometimes fails and the guest hangs. So the runner passes the frequency to the guest.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time

# rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_MEASURE_S = 0.02


class Counter:
    """Measures the counter from its creation on, so that `khz` need not wait later."""

    def __init__(self) -> None:
        self._read = None
        if os.uname().machine != "x86_64":
            return
        try:
            page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError:
            return
        page.write(_RDTSC)
        self._page = page  # must live as long as the function in it
        self._read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        self._start = self._sample()

    def khz(self) -> int | None:
        """Return the frequency in kHz, accurate to about 0.01 %. None if the host is not x86_64 or forbids the measurement."""
        if self._read is None:
            return None
        start_ns, start = self._start
        time.sleep(max(_MEASURE_S - (time.monotonic_ns() - start_ns) / 1e9, 0))
        end_ns, end = self._sample()
        return round((end - start) * 1_000_000 / (end_ns - start_ns))

    def _sample(self) -> tuple[int, int]:
        """Return nanoseconds and ticks at the same moment: the best of several tries."""
        assert self._read is not None
        tries = []
        for _ in range(8):
            before = time.monotonic_ns()
            ticks = int(self._read())
            after = time.monotonic_ns()
            tries.append((after - before, (before + after) // 2, ticks))
        return min(tries)[1:]
