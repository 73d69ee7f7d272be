"""Text from outside (guests, images, registries, archives, files of others), made safe to show."""

from __future__ import annotations

SHOWN_MAX = 300


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


def _escaped(char: str) -> str:
    if char.isprintable() and char != "\\":
        return char
    if 0xDC80 <= ord(char) <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
