"""Make inherited standard streams usable: they may be closed, or non-blocking because another program changed them.

Both tools call `settle` first. Then descriptors 0 to 2 are open, so no other file ever gets such a number, and the streams
of `sys` wait for their reader or writer instead of failing with EAGAIN.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import select
import signal
import sys
from typing import Any

from rootdisk.errors import RootdiskError
from rootdisk.text import error_text

_NAMES = ("stdin", "stdout", "stderr")
_SHOWN = ("standard input", "standard output", "standard error")
_GARBAGE_COUNT = 20_000  # more objects than a command has when it starts


class OutputError(RootdiskError):
    """A failed write to standard output or error, for example because the disk is full."""


def speak_utf8() -> None:
    """Restart this command in UTF-8 mode if Python decodes file names differently, for example with PYTHONUTF8=0.

    Names in images, artifacts and our own files are UTF-8. Many of them could not be opened otherwise.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8=1", *sys.orig_argv[1:]])


def settle() -> None:
    """Repair inherited state: descriptors 0 to 2, the streams of `sys`, SIGCHLD, the signal mask and the umask.

    A closed descriptor becomes /dev/null. Signals that the caller ignores stay ignored. Garbage is collected seldom: loading modules
    makes none, and looking for it takes as long as a tenth of them. At the end it is not looked for.
    """
    gc.set_threshold(_GARBAGE_COUNT)
    atexit.register(gc.freeze)
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
    # If SIGCHLD is ignored, every program that we start seems to exit with status 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Otherwise we could not open our own files and sockets.
    os.umask(os.umask(0o077) & 0o077)


def _is_ours(stream: Any, fd: int) -> bool:
    """Return whether Python created `stream` for the descriptor `fd` and we have not replaced it yet."""
    if stream is None:
        return True
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return type(raw) is io.FileIO and raw.fileno() == fd


def _stream(fd: int, old: Any) -> io.TextIOWrapper:
    """Return a text stream for descriptor `fd` that waits, with the encoding and buffering of `old`.

    It is `old` itself with a new buffer. Code that already holds `old`, such as doit, then writes to the same buffer, so lines
    stay in order.
    """
    encoding = old.encoding if old is not None else "utf-8"
    lines = old is not None and (old.line_buffering or old.write_through)
    raw = _Waiting(fd, "rb" if fd == 0 else "wb", closefd=False)
    stream = old if isinstance(old, io.TextIOWrapper) else io.TextIOWrapper.__new__(io.TextIOWrapper)
    if fd == 0:
        stream.__init__(io.BufferedReader(raw), encoding, "surrogateescape")  # type: ignore[misc]
        return stream
    # Standard output keeps names that are not UTF-8. Characters that another encoding lacks are written as escapes.
    errors = "surrogateescape" if fd == 1 and encoding.lower() == "utf-8" else "backslashreplace"
    if stream is old:
        old.flush()
    stream.__init__(io.BufferedWriter(raw), encoding, errors, line_buffering=lines or fd == 2)  # type: ignore[misc]
    return stream


class _Waiting(io.FileIO):
    """A standard descriptor that waits even if it is non-blocking. Errors of standard error are ignored: nobody can see them."""

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`, after waiting for input."""
        while (count := super().readinto(buffer)) is None:
            _wait(self.fileno(), select.POLLIN)
        return count

    def readall(self) -> bytes:
        """Read to the end."""
        data, piece = bytearray(), bytearray(1 << 16)
        while count := self.readinto(piece):
            data += piece[:count]
        return bytes(data)

    def write(self, data: Any) -> int:
        """Write what fits, after waiting for room."""
        try:
            while (count := super().write(data)) is None:
                _wait(self.fileno(), select.POLLOUT)
        except BrokenPipeError:
            if _ends_for and self.fileno() == 1:
                discard_output()
                raise SystemExit(1) from None
            raise
        except OSError as err:
            if self.fileno() == 2:
                return len(data)
            if _ends_for:
                discard_output()
                raise SystemExit(f"{_ends_for}: {output_error(self.fileno(), err)}") from None
            raise output_error(self.fileno(), err) from err
        return count


_ends_for = ""


def end_without_output(program: str) -> None:
    """End from now on if standard output cannot be written: for `program`, which would show a traceback of the error."""
    global _ends_for
    if not _ends_for:
        atexit.register(_last_flush)
    _ends_for = program


def _last_flush() -> None:
    """Flush the buffers here: at exit Python would report an error in its own way."""
    try:
        sys.stdout.flush()
    except SystemExit as err:
        if isinstance(err.code, str):
            print(error_text(err.code), file=sys.stderr, flush=True)
        os._exit(1)


def output_error(fd: int, err: OSError) -> OutputError:
    """Return the error for a failed write to descriptor `fd`."""
    return OutputError(f"cannot write to {_SHOWN[fd]}: {err.strerror}")


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` to descriptor 1 or 2, and wait if it is non-blocking.

    Raises:
        BrokenPipeError: The reader has closed the pipe.
        OutputError: The write failed for another reason.
    """
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
    """Discard buffered standard output after an error. Otherwise Python reports the same error again when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
