"""The console of a guest: its last lines, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path

from rootdisk.text import printable

TAIL_BYTES = 8 << 10

SHOWN_LINES = 12
NOTHING = "the kernel printed nothing: is it for this platform, and is --memory large enough?"

# Text of a line, and what it means to the user.
_MEANINGS = (
    (
        "Failed to execute /init (error -8)",
        "the init is for another architecture: build the artifact for this platform",
    ),
    ("No working init found", "the kernel found no init: is this the right initramfs?"),
    ("Out of memory", "the guest ran out of memory: use a larger --memory"),
    ("System is deadlocked on memory", "the guest ran out of memory: use a larger --memory"),
    ("Unable to mount root", "the kernel could not mount the disk"),
    ("Initramfs unpacking failed", "the initramfs is damaged or does not fit into memory: use a larger --memory"),
    ("Kernel panic", "the guest's kernel panicked"),
)
# What the kernel says last when a program calls reboot(2), and what POWER has for it.
POWER_MARKS = {b"reboot: Power down": 1, b"reboot: System halted": 2, b"reboot: Restarting system": 3}
LINE_MAX = 256


def power_of(text: bytes) -> int | None:
    """Return how a program has ended the machine, as POWER has it, if the console says so; None if not."""
    for line in text.splitlines():
        said = line.partition(b"] ")[2] if line.startswith(b"[") else line
        if said in POWER_MARKS:
            return POWER_MARKS[said]
    return None


def tail(path: Path) -> list[str]:
    """Return the last lines of a log, at most TAIL_BYTES, made safe to show; [] without a log."""
    data = _end(path, TAIL_BYTES)
    if len(data) < TAIL_BYTES:
        data = _end(path.with_name(f"{path.name}.old"), TAIL_BYTES - len(data)) + data
    lines = (line.rstrip().replace(b"\t", b" ") for line in data.splitlines())
    return [printable(line) for line in lines if line]


def _end(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)
    except OSError:
        return b""


def telling(lines: list[str]) -> list[str]:
    """Return the SHOWN_LINES most useful lines: the last ones, or those up to a panic, which a long trace follows."""
    end = next((number + 1 for number, line in enumerate(lines) if "Kernel panic" in line), len(lines))
    return lines[max(0, end - SHOWN_LINES) : end]


def meaning(lines: list[str]) -> str:
    """Return the known failure that the lines show, or ""."""
    text = "\n".join(lines)
    for mark, reason in _MEANINGS:
        if mark in text:
            return reason
    init_lines = [line for line in lines if line.startswith("rootdisk: ")]
    return init_lines[-1].removeprefix("rootdisk: ") if init_lines else ""
