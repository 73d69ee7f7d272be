"""What a program writes to a terminal."""

from __future__ import annotations

import contextlib
import os


def read_terminal(terminal: int) -> bytes:
    """Everything that was or is written to the other side of `terminal`, until nobody has that open any more.

    The kernel hands it on a little later, and in parts, so one `os.read` may miss the rest, even of a process that has ended.
    Linux ends it with EIO.
    """
    pieces = []
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 65536):
            pieces.append(piece)
    return b"".join(pieces)
