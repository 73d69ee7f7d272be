"""One input under bounds: time and memory, and no exception but RootdiskError.

The bounds are processor time and the size of the process's data, which another program on a busy machine does not change.
"""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from rootdisk.errors import RootdiskError
from tests.support.commands import ROOT

SECONDS = 2.0
MEMORY_BYTES = 300 << 20


class Fault(NamedTuple):
    """What an input did that no input may do."""

    kind: str  # the exception's name
    place: str  # file and line of ours where it was raised: the same place is the same fault
    text: str


class TooSlow(BaseException):
    """Past what parsers catch."""


def limit() -> None:
    """Bound this process, from now on, to what it has and MEMORY_BYTES."""
    signal.signal(signal.SIGPROF, _stop)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    status = Path("/proc/self/status").read_text()
    present = int(status.partition("VmData:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (present + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def attempt(read: Callable[[bytes], object], data: bytes) -> bool | Fault:
    """Whether `data` was read; False if it was refused."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        read(data)
    except RootdiskError as err:
        return _of_message(err)
    except KeyboardInterrupt:
        raise
    except BaseException as err:
        return _fault(err)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return True


def _of_message(err: RootdiskError) -> bool | Fault:
    """An error is one line that can be shown and encoded."""
    text = str(err)
    bad = next((char for char in text if char in "\r\n\x1b\x9b" or 0xD800 <= ord(char) < 0xE000), None)
    if bad is None:
        return False
    return Fault(f"message with {bad!r}", _place(err), repr(text[:2000]))


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SECONDS:g} s of processor time")


def _fault(err: BaseException) -> Fault:
    text = "".join(traceback.format_exception(err, limit=-30))
    return Fault(type(err).__name__, _place(err), text[-6000:])


def _place(err: BaseException) -> str:
    """The innermost frame of ours; for assertions of the tests, theirs."""
    frames = traceback.extract_tb(err.__traceback__)
    ours = [one for one in frames if one.filename.startswith(str(ROOT)) and os.sep + ".venv" not in one.filename]
    last = ours[-1] if ours else frames[-1]
    return f"{os.path.relpath(last.filename, ROOT)}:{last.lineno} {last.name}"
