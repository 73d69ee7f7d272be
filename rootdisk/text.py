"""Make untrusted text safe to show: text from guests, images, registries, archives and other users' files."""

from __future__ import annotations

import os

SHOWN_MAX = 300
ERROR_MAX, ERROR_LINE_MAX = 64 << 10, 900


def printable(value: str | bytes | object, limit: int = SHOWN_MAX) -> str:
    """Return `value` on one line, without control characters, at most `limit` characters and "…".

    Bytes are decoded as UTF-8. Everything that is not printable (control and format characters, line ends, lone surrogates,
    bytes that are not UTF-8) and the backslash are escaped: `\\n`, `\\x1b`, `\\u202e`. So different values never look alike.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        # A character has at most four bytes in UTF-8.
        text = bytes(value[: 4 * limit + 4]).decode("utf-8", "surrogateescape")
    else:
        text = str(value)
    shown = "".join(map(_escaped, text[: limit + 1]))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def one_line(text: str) -> str:
    """Return all of `text` on one line, without control characters. Backslashes stay: parts may be escaped already."""
    return text if text.isprintable() else "".join(char if char == "\\" else _escaped(char) for char in text)


def lack(err: Exception) -> str:
    """Return what this process may have no more of, memory or threads, with a hint; "" if `err` is another error."""
    if isinstance(err, MemoryError):
        return "not enough memory: see ulimit -v, and the limit of the container"
    # CPython has no class for it: Modules/_threadmodule.c
    if isinstance(err, RuntimeError) and "start new thread" in str(err):
        return "cannot start another thread: see ulimit -u, and the limit of processes of the container"
    return ""


def describe_error(err: Exception) -> str:
    """Return the message of an error. For an OSError this is the file and the reason."""
    if not isinstance(err, OSError):
        return lack(err) or str(err)
    if err.filename is not None:
        name = os.fsdecode(err.filename) if isinstance(err.filename, (str, bytes)) else str(err.filename)
        if name.startswith("/proc/") and not os.path.exists("/proc/self"):
            return "there is no /proc here: mount -t proc proc /proc"
        return f"{name}: {err.strerror}"
    try:
        os.getcwd()
    except OSError:
        return "the working directory was deleted: cd to one that exists"
    return f"{err.strerror or err}: --debug shows where"


def error_text(text: str) -> str:
    """Return the text of an error, made safe to show even if a caller forgot `printable`.

    The result is one line without control characters. Only lines indented by two spaces, for example from a guest's
    console, may follow it. The middle of a long line is left out.
    """
    return "\n  ".join(map(_error_line, text[:ERROR_MAX].split("\n  ")))


def _error_line(line: str) -> str:
    shown = one_line(line)
    half = ERROR_LINE_MAX // 2
    return shown if len(shown) <= ERROR_LINE_MAX else f"{shown[:half]}…{shown[1 - half :]}"


def _escaped(char: str) -> str:
    if char.isprintable() and char != "\\":
        return char
    if 0xDC80 <= ord(char) <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
