"""Standard input, output and error as a caller leaves them: open, closed, or non-blocking because a program that shares them made them so.

`settle` is the first thing that both tools do. After it descriptors 0 to 2 are open, so that no file of ours ever gets such a
number; and the streams of `sys` wait for a reader or writer instead of failing with EAGAIN.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from typing import Any

from rootdisk.errors import RootdiskError

_NAMES = ("stdin", "stdout", "stderr")
_SHOWN = ("standard input", "standard output", "standard error")


class OutputError(RootdiskError):
    """Standard output takes no more: the disk is full, say."""


def speak_utf8() -> None:
    """Start this command again if Python reads file names in another encoding than UTF-8, as by LC_ALL=C with PYTHONUTF8=0.

    Names in images, artifacts and our own files are UTF-8: half of them could not be opened.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8=1", *sys.orig_argv[1:]])


def settle() -> None:
    """Make what this process has inherited usable: descriptors 0 to 2, the streams of `sys`, SIGCHLD, signal mask, umask.

    A closed descriptor becomes /dev/null. Signals that the caller ignores stay ignored.
    """
    for fd, name in enumerate(_NAMES):
        stream = getattr(sys, f"__{name}__")
        if stream is None:  # it was closed when Python started
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, fd)
            if null != fd:
                os.close(null)
            os.set_inheritable(fd, True)
        if stream is getattr(sys, name) and _is_ours(stream, fd):
            waiting = _stream(fd, stream)
            setattr(sys, name, waiting)
            setattr(sys, f"__{name}__", waiting)
    # A caller that ignores it would make every program we start look as if it ended with 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Else what we make, sockets too, could not be opened by ourselves.
    os.umask(os.umask(0o077) & 0o077)


def _is_ours(stream: Any, fd: int) -> bool:
    """Whether Python made `stream` for the descriptor `fd`, and we have not replaced it yet."""
    if stream is None:
        return True
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return type(raw) is io.FileIO and raw.fileno() == fd


def _stream(fd: int, old: Any) -> io.TextIOWrapper:
    """The text stream of descriptor `fd`, which waits; encoding and buffering as of `old`.

    It is `old` itself with another buffer: what holds it already (doit does) writes into the same buffer, so that lines keep their order.
    """
    encoding = old.encoding if old is not None else "utf-8"
    lines = old is not None and (old.line_buffering or old.write_through)
    raw = _Waiting(fd, "rb" if fd == 0 else "wb", closefd=False)
    made = old if isinstance(old, io.TextIOWrapper) else io.TextIOWrapper.__new__(io.TextIOWrapper)
    if fd == 0:
        made.__init__(io.BufferedReader(raw), encoding, "surrogateescape")  # type: ignore[misc]
        return made
    # A name that is not UTF-8 leaves standard output as it is; what another encoding lacks is written as an escape.
    errors = "surrogateescape" if fd == 1 and encoding.lower() == "utf-8" else "backslashreplace"
    if made is old:
        old.flush()
    made.__init__(io.BufferedWriter(raw), encoding, errors, line_buffering=lines or fd == 2)  # type: ignore[misc]
    return made


class _Waiting(io.FileIO):
    """A standard descriptor: waits where it does not block. Nobody is left to be told that standard error fails."""

    def readinto(self, buffer: Any) -> int:
        while (count := super().readinto(buffer)) is None:
            _wait(self.fileno(), select.POLLIN)
        return count

    def readall(self) -> bytes:
        data, piece = bytearray(), bytearray(1 << 16)
        while count := self.readinto(piece):
            data += piece[:count]
        return bytes(data)

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:
                _wait(self.fileno(), select.POLLOUT)
        except BrokenPipeError:
            raise
        except OSError as err:
            if self.fileno() == 2:
                return len(data)
            raise output_error(self.fileno(), err) from err
        return count


def output_error(fd: int, err: OSError) -> OutputError:
    return OutputError(f"cannot write to {_SHOWN[fd]}: {err.strerror}")


def write_all(fd: int, data: bytes) -> None:
    """All of `data` to descriptor 1 or 2, waiting where it does not block. OutputError; BrokenPipeError if nobody reads it."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)
        except BrokenPipeError:
            raise
        except OSError as err:
            raise output_error(fd, err) from err


def _wait(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def discard_output() -> None:
    """Drop what standard output still has to write, as nobody takes it; else Python complains of it at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
