"""Room on the host's disk for what a guest writes, and what is done when there is none.

A file that cannot grow is an I/O error for the guest's kernel, which then gives its file system up. So long before that the
guest is told to hold: its init reserves all free blocks, and programs get ENOSPC. If the disk is full nevertheless (the guest
has old data to write back, or does not listen), QEMU stops the machine at that write; the keeper lets it try again when
there is room. Nothing is lost in either case.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from rootdisk.text import printable

TEXT = 'the host\'s disk is full: programs in the sandbox get "No space left on device" until there is room in {}'
STOPPED = "the host's disk is full: the sandbox stands still until there is room in {}"
CONTINUE = b'{"execute": "cont"}\n'
_BEGIN = b'{"execute": "qmp_capabilities"}\n'
_RESERVE_BYTES = 16 << 20
_AGAIN_BYTES = 1 << 20  # of room before a stopped machine tries again
_LINE_MAX_BYTES = 64 << 10
_FAST_BYTES_S = 1 << 30  # what may be written in a second
_SOON_S, _LATE_S = 0.5, 10.0
_SAY_S = 60.0  # not more often


class Room:
    """Decides by the room in `folder` whether its guest may use new blocks, and whether its stopped machine may go on."""

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        """`memory_bytes` is the guest's: a part of it may be data that is not written yet."""
        self._folder = folder
        self._memory_bytes = memory_bytes
        self.is_held = False
        self.is_stopped = False
        self._look_at = 0.0
        self._said_at: float | None = None
        self._is_new = False  # something to say

    def stop(self, now: float) -> None:
        """The machine has stopped at a write."""
        self.is_stopped = True
        self._is_new |= not self.is_held
        self._look_at = now + _SOON_S

    def look(self, now: float) -> bool:
        """Look at the disk if it is time to; whether a stopped machine may go on."""
        if now < self._look_at:
            return False
        try:
            system = os.statvfs(self._folder)
        except OSError:
            self._look_at = now + _LATE_S
            return False
        free = system.f_bavail * system.f_frsize
        reserve = min(_RESERVE_BYTES + self._memory_bytes // 4, system.f_blocks * system.f_frsize // 8)
        if self.is_held != (free < reserve + (reserve // 4 if self.is_held else 0)):
            self.is_held = not self.is_held
            self._is_new |= self.is_held
        short = self.is_held or self.is_stopped
        self._look_at = now + (_SOON_S if short else min(max((free - reserve) / _FAST_BYTES_S, _SOON_S), _LATE_S))
        if self.is_stopped and free >= _AGAIN_BYTES:
            self.is_stopped = False
            return True
        return False

    @property
    def next_look(self) -> float:
        """When `look` looks next."""
        return self._look_at

    def to_say(self, now: float) -> str | None:
        """What the user should know, once."""
        if not self._is_new:
            return None
        self._is_new = False
        if self._said_at is not None and now < self._said_at + _SAY_S:
            return None
        self._said_at = now
        return self.text

    @property
    def text(self) -> str | None:
        """What is the matter now."""
        if not self.is_held and not self.is_stopped:
            return None
        return (STOPPED if self.is_stopped else TEXT).format(printable(self._folder.parent))


class Monitor:
    """What QEMU says on its monitor, as far as it concerns us: JSON, a line each."""

    def __init__(self) -> None:
        self.out = bytearray(_BEGIN)
        self._line = bytearray()

    def sent(self, count: int) -> None:
        """So many bytes of `out` have been."""
        del self.out[:count]

    def feed(self, data: bytes) -> bool:
        """Whether the machine has stopped for want of room."""
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = rest[:_LINE_MAX_BYTES]
        return any(map(_is_no_room, list(lines)))


def _is_no_room(line: bytes | bytearray) -> bool:
    try:
        event = json.loads(line)
        return bool(event["event"] == "BLOCK_IO_ERROR" and event["data"]["action"] == "stop")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
