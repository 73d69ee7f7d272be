"""What is shown of a guest's console."""

from __future__ import annotations

from runner.machine import console

BOOT = [f"[    0.{number}] booting" for number in range(30)]
PANIC = [
    "[    4.1] Failed to execute /init (error -8)",
    "[    4.2] Kernel panic - not syncing: No working init found.  Try passing init= option to kernel.",
]
# Linux 6.12 on a restart at once: the line "end Kernel panic" is not reached.
TRACE = ["[    4.3] CPU: 0 UID: 0 PID: 1 Comm: swapper/0 Not tainted", "[    4.4] Call Trace:"]
TRACE += [f"[    4.5] call_{number}+0x1/0x2" for number in range(20)]


def test_a_panic_is_shown_whatever_follows_it() -> None:
    assert console.telling(BOOT + PANIC + TRACE) == (BOOT + PANIC)[-console.SHOWN_LINES :]
    assert console.meaning(BOOT + PANIC + TRACE).startswith("the init is for another architecture")


def test_else_the_last_lines_are_shown() -> None:
    assert console.telling(BOOT) == BOOT[-console.SHOWN_LINES :]
    assert console.telling([]) == []
