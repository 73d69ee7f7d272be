"""Small files that a user names on a command line or in images.toml."""

from __future__ import annotations

import os
import select
import stat
from pathlib import Path

from rootdisk.cli.sizes import size_text
from rootdisk.errors import BadInput
from rootdisk.text import printable

FIFO_WAIT_S = 10.0


def read_small_file(
    path: Path, max_bytes: int, *, option: str = "", shown: str = "", wait_s: float = FIFO_WAIT_S
) -> bytes:
    """Read a file that a user names. It may be a link or a pipe, as shells make for `<(…)`.

    Args:
        path: The file.
        max_bytes: Larger files are refused, and not read further.
        option: Stands before the message if it is given, such as `--env-file`.
        shown: What the user wrote, if that is not `path`.
        wait_s: For how long to wait for a program that opens a FIFO to write. Then it has all the time it wants.

    Raises:
        BadInput: It cannot be read, is too large, or is a FIFO that nothing writes to.
    """
    name = printable(shown or path)
    place = f"{option}: " if option else ""
    try:
        with open(path, "rb", opener=_opener) as file:
            first = _first(file.fileno(), wait_s) if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) else b""
            if first is None:
                raise BadInput(f"{place}{name} is a FIFO, and no program writes to it")
            os.set_blocking(file.fileno(), True)
            data = first + file.read(max_bytes + 1)
    except OSError as err:
        raise BadInput(f"{place}cannot read {name}: {err.strerror}") from err
    if len(data) > max_bytes:
        raise BadInput(f"{place}{name} is larger than {size_text(max_bytes)}", "is it the right file?")
    return data


def _opener(path: str, flags: int) -> int:
    """Open without waiting for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _first(fifo: int, wait_s: float) -> bytes | None:
    """Wait for a program that writes to a FIFO. Return what was read to find out; None if no program writes."""
    poll = select.poll()
    poll.register(fifo, select.POLLIN)
    if poll.poll(wait_s * 1000):  # data, or the end of what had it open
        return b""
    try:
        return os.read(fifo, 1) or None
    except BlockingIOError:
        return b""  # it is slow
