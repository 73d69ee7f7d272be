"""The guest's console: its last lines, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path

TAIL_BYTES = 8 << 10

SHOWN_LINES = 12
NOTHING = "the kernel said nothing: is it for this platform, and is --memory enough for it?"

# What a line holds, and what it means for whoever has to mend it.
_MEANINGS = (
    ("Failed to execute /init (error -8)", "the init is for another processor: build the artifact for this platform"),
    ("No working init found", "the kernel found no init: is it the right initramfs?"),
    ("Out of memory", "the guest ran out of memory: give it more with --memory"),
    ("System is deadlocked on memory", "the guest ran out of memory: give it more with --memory"),
    ("Unable to mount root", "the kernel could not mount the disk"),
    ("Initramfs unpacking failed", "the initramfs does not fit into memory or is damaged: give more with --memory"),
    ("Kernel panic", "the guest's kernel panicked"),
)


def tail(path: Path) -> list[str]:
    """The last lines of the console log, TAIL_BYTES at most; none where there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    clean = ("".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in text.splitlines())
    return [line for line in clean if line]


def meaning(lines: list[str]) -> str:
    """What known failure the lines show, or ""."""
    text = "\n".join(lines)
    for mark, reason in _MEANINGS:
        if mark in text:
            return reason
    own = [line for line in lines if line.startswith("rootdisk: ")]
    return own[-1].removeprefix("rootdisk: ") if own else ""
