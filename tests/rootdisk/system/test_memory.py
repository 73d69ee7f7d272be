"""The C library's allocator, in a process of its own: its settings cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEPT = """
import resource, sys
from pathlib import Path
from rootdisk.system.memory import keep_buffers
def now():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
{first}
b"x" * (31 << 20)  # the allocator keeps blocks of this size from now on
before = now()
blocks = [b"x" * (3 << 20) for _ in range(10)]
del blocks
print((now() - before) >> 20)
"""


@pytest.mark.parametrize(("first", "returned"), [("keep_buffers()", True), ("", False)])
def test_large_blocks_go_back_to_the_kernel(first: str, returned: bool) -> None:
    done = subprocess.run([sys.executable, "-c", KEPT.format(first=first)], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 8) is returned
