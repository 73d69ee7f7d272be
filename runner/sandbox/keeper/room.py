"""Handle a full disk of the host.

If the file of a guest's disk cannot grow, the guest's kernel gets an I/O error and gives up its file system. To prevent that,
the guest is told to hold long before: its init reserves all free blocks, and programs get ENOSPC. If the disk gets full
anyway (the guest writes back old data, or ignores the order), QEMU stops the machine at that write. The keeper lets it
continue when there is space. No data is lost in either case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rootdisk.text import printable
from runner.store.limits import Limits, space

QUOTA_TEXT = (
    'the sandboxes have used up their quota: programs get "No space left on device" until some are removed from {}'
)
TEXT = 'the host\'s disk is full: programs in the sandbox get "No space left on device" until there is space in {}'
STOPPED = "the host's disk is full: the sandbox is paused until there is space in {}"
CONTINUE = b'{"execute": "cont"}\n'
_BEGIN = b'{"execute": "qmp_capabilities"}\n'
_RESERVE_BYTES = 16 << 20
_AGAIN_BYTES = 1 << 20  # free space for a stopped machine to continue
_LINE_MAX_BYTES = 64 << 10
_FAST_BYTES_S = 1 << 30  # the fastest that a guest can write
_SOON_S, _LATE_S = 0.5, 10.0
_SAY_S = 60.0  # minimum time between notices


class Room:
    """Decides whether a guest may use new blocks and whether its stopped machine may continue, from the space in `folder`."""

    def __init__(self, folder: Path, memory_bytes: int, limits: Limits = Limits()) -> None:  # noqa: B008 - a frozen value
        """`memory_bytes` is the memory of the guest: part of it may be unwritten data. `limits` are those of the store."""
        self._limits = limits
        self._is_quota = False
        self._folder = folder
        self._memory_bytes = memory_bytes
        self.is_held = False
        self.is_stopped = False
        self._look_at = 0.0
        self._said_at: float | None = None
        self._is_new = False  # there is something to report

    def stop(self, now: float) -> None:
        """Note that the machine has stopped at a write."""
        self.is_stopped = True
        self._is_new |= not self.is_held
        self._look_at = now + _SOON_S

    def look(self, now: float) -> bool:
        """Check the disk if it is time. Return whether a stopped machine may continue."""
        if now < self._look_at:
            return False
        try:
            found = space(self._folder.parent, self._limits)
        except OSError:
            self._look_at = now + _LATE_S
            return False
        free = found.free
        reserve = min(_RESERVE_BYTES + self._memory_bytes // 4, found.total // 8)
        self._is_quota = found.is_quota
        if self.is_held != (free < reserve + (reserve // 4 if self.is_held else 0)):
            self.is_held = not self.is_held
            self._is_new |= self.is_held
        short = self.is_held or self.is_stopped
        self._look_at = now + (_SOON_S if short else min(max((free - reserve) / _FAST_BYTES_S, _SOON_S), _LATE_S))
        if self.is_stopped and found.physical >= _AGAIN_BYTES:
            self.is_stopped = False
            return True
        return False

    @property
    def next_look(self) -> float:
        """The time of the next check (monotonic seconds)."""
        return self._look_at

    def to_say(self, now: float) -> str | None:
        """Return a notice for the user, once, or None."""
        if not self._is_new:
            return None
        self._is_new = False
        if self._said_at is not None and now < self._said_at + _SAY_S:
            return None
        self._said_at = now
        return self.text

    @property
    def text(self) -> str | None:
        """The current problem, or None."""
        if not self.is_held and not self.is_stopped:
            return None
        text = QUOTA_TEXT if self._is_quota else TEXT
        return (STOPPED if self.is_stopped else text).format(printable(self._folder.parent))


class Monitor:
    """Reads the monitor of QEMU (JSON lines): stops of the machine, and replies to what the keeper has ordered."""

    def __init__(self) -> None:
        self.out = bytearray(_BEGIN)
        self.reply: dict[str, Any] | None = None  # the last reply with an id
        self._line = bytearray()
        self._answers: list[Mapping[str, Any]] = []

    def sent(self, count: int) -> None:
        """Remove `count` sent bytes of `out`."""
        del self.out[:count]

    def feed(self, data: bytes) -> bool:
        """Add received data. Return whether the machine has stopped because the disk is full."""
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = rest[:_LINE_MAX_BYTES]
        values = [value for value in map(_parse, lines) if value is not None]
        for value in values:
            if isinstance(value.get("id"), int):
                self._answers.append(value)
            elif "id" in value:
                self.reply = dict(value)
        return any(map(_is_no_room, values))

    def take_answers(self) -> list[Mapping[str, Any]]:
        """Return the answers to orders with a number as `id`, once."""
        answers, self._answers = self._answers, []
        return answers


def _parse(line: bytes | bytearray) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
        return value if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def _is_no_room(event: Mapping[str, Any]) -> bool:
    try:
        return bool(event["event"] == "BLOCK_IO_ERROR" and event["data"]["action"] == "stop")
    except (KeyError, TypeError):
        return False
