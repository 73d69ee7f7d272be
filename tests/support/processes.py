"""Processes looked at from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.support.waiting import until

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


def open_files(pid: int | str = "self") -> dict[int, str]:
    """What each descriptor of a process is of; nothing if it has ended, or is not ours to see."""
    found = {}
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile, as that of the listing
                found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return found


def until_it_waits(process: subprocess.Popen[Any], quiet_s: float = 0.4) -> None:
    """Wait until the running process sleeps and has used no processor time for `quiet_s`: it waits for something."""
    until(lambda: is_asleep(process.pid, quiet_s))
    assert process.poll() is None


def is_asleep(pid: int, quiet_s: float) -> bool:
    """Whether the process has used no processor time for `quiet_s` and sleeps, or has ended and nobody has asked how."""

    def look() -> list[str]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return [fields[0], *fields[11:13]]  # state, utime, stime

    before = look()
    time.sleep(quiet_s)
    return before[0] in "SZ" and before == look()


def start_with_default_signals() -> None:
    """Let programs that the tests start hear signals that this process ignores, as it does behind `nohup` or `&`.

    A signal that is ignored stays so in a new program; one that is handled is at its default there.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
