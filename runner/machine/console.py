"""The guest's console: its last lines, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path

from rootdisk.text import printable

TAIL_BYTES = 8 << 10

SHOWN_LINES = 12
NOTHING = "the kernel said nothing: is it for this platform, and is --memory enough for it?"

# What a line holds, and what it means for who has to fix it.
_MEANINGS = (
    ("Failed to execute /init (error -8)", "the init is for another processor: build the artifact for this platform"),
    ("No working init found", "the kernel found no init: is it the right initramfs?"),
    ("Out of memory", "the guest ran out of memory: give it more with --memory"),
    ("System is deadlocked on memory", "the guest ran out of memory: give it more with --memory"),
    ("Unable to mount root", "the kernel could not mount the disk"),
    ("Initramfs unpacking failed", "the initramfs does not fit into memory or is damaged: give more with --memory"),
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
    """The last lines of a log, TAIL_BYTES at most, made safe to show; none if there is no log."""
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
    """The SHOWN_LINES that tell most: the last ones, or those up to a panic, as its registers and call trace follow it."""
    end = next((number + 1 for number, line in enumerate(lines) if "Kernel panic" in line), len(lines))
    return lines[max(0, end - SHOWN_LINES) : end]


def meaning(lines: list[str]) -> str:
    """What known failure the lines show, or ""."""
    text = "\n".join(lines)
    for mark, reason in _MEANINGS:
        if mark in text:
            return reason
    own = [line for line in lines if line.startswith("rootdisk: ")]
    return own[-1].removeprefix("rootdisk: ") if own else ""
