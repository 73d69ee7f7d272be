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


def khz() -> int | None:
    """The counter's kHz, good to some 0.01 %; None where the host is no x86_64 or forbids the measurement."""
    if os.uname().machine != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(_RDTSC)
    anchor = ctypes.c_char.from_buffer(page)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))

    def sample() -> tuple[int, int]:
        """Nanoseconds and ticks at one moment: the try that was disturbed least."""
        tries = []
        for _ in range(8):
            before = time.monotonic_ns()
            ticks = read()
            after = time.monotonic_ns()
            tries.append((after - before, (before + after) // 2, ticks))
        return min(tries)[1:]

    start_ns, start = sample()
    time.sleep(_MEASURE_S)
    end_ns, end = sample()
    return round((end - start) * 1_000_000 / (end_ns - start_ns))
