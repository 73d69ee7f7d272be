"""Text from outside (guests, images, registries, archives, files of others), made safe to show."""

from __future__ import annotations

import os

SHOWN_MAX = 300
ERROR_MAX, ERROR_LINE_MAX = 64 << 10, 900


def printable(value: str | bytes | object, limit: int = SHOWN_MAX) -> str:
    """Return `value` on one line, without control characters, at most `limit` characters and "…".

    Bytes are read as UTF-8. What is not printable (control and format characters, line ends, lone surrogates, bytes that are
    not UTF-8) and the backslash become escapes: `\\n`, `\\x1b`, `\\u202e`. So two different values never look the same.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        text = bytes(value[: 4 * limit + 4]).decode(
            "utf-8", "surrogateescape"
        )  # UTF-8 has at most four bytes a character
    else:
        text = str(value)
    shown = "".join(map(_escaped, text[: limit + 1]))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def one_line(text: str) -> str:
    """Return `text` whole, on one line and without control characters; backslashes stay, as parts of it may be escaped already."""
    return text if text.isprintable() else "".join(char if char == "\\" else _escaped(char) for char in text)


def said(err: Exception) -> str:
    """What an error says: of an OSError the file and the reason."""
    if not isinstance(err, OSError):
        return str(err)
    if err.filename is not None:
        return (
            f"{os.fsdecode(err.filename) if isinstance(err.filename, (str, bytes)) else err.filename}: {err.strerror}"
        )
    try:
        os.getcwd()
    except OSError:
        return "the working directory is not there any more: cd to one that is"
    return f"input/output: {err.strerror or err}"


def error_text(text: str) -> str:
    """Return an error's text as it is shown, the last net under `printable`: no control characters, bounded.

    It is one line; only lines that are indented by two spaces, as a console's are, follow it. Of a long line the middle is left out.
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
