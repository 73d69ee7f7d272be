"""How fast the host's time stamp counter ticks, for guests under TCG on x86.

Such a guest reads the host's counter, and `microvm` has no other clock to measure it by than the PIT. On a busy host
the kernel's measurement (arch/x86/kernel/tsc.c) fails now and then, and the guest stands still for ever, so it is told.
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
    """The counter, measured from now on, so that whoever asks later need not wait."""

    def __init__(self) -> None:
        self._read = None
        if os.uname().machine != "x86_64":
            return
        try:
            page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError:
            return
        page.write(_RDTSC)
        self._page = page  # held as long as the function in it
        self._read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        self._start = self._sample()

    def khz(self) -> int | None:
        """The counter's kHz, good to some 0.01 %; None where the host is no x86_64 or forbids the measurement."""
        if self._read is None:
            return None
        start_ns, start = self._start
        time.sleep(max(_MEASURE_S - (time.monotonic_ns() - start_ns) / 1e9, 0))
        end_ns, end = self._sample()
        return round((end - start) * 1_000_000 / (end_ns - start_ns))

    def _sample(self) -> tuple[int, int]:
        """Nanoseconds and ticks at one moment: the try that was disturbed least."""
        assert self._read is not None
        tries = []
        for _ in range(8):
            before = time.monotonic_ns()
            ticks = int(self._read())
            after = time.monotonic_ns()
            tries.append((after - before, (before + after) // 2, ticks))
        return min(tries)[1:]
