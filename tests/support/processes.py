"""Processes looked at from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

# Redirections that close standard descriptors, for a shell.
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


def peak_bytes(process: subprocess.Popen[Any]) -> int:
    """Its largest resident set until it ends; wait4's would have the memory of who forked it."""
    peak = 0
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = max(peak, int(line.split()[1]) << 10)
        time.sleep(0.01)
    return peak


def resident_bytes(pid: int) -> int:
    """The resident set of a running process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start_with_default_signals() -> None:
    """Let programs that the tests start hear signals that this process ignores, as it does behind `nohup` or `&`.

    A signal that is ignored stays so in a new program; one that is handled is at its default there.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
