"""Values that a program gives to the API: texts, numbers and bytes. What has another type is refused before anything is done."""

from __future__ import annotations

import math
import operator
import os

from rootdisk.errors import BadInput
from rootdisk.text import printable


def text_of(value: str | bytes | os.PathLike[str], what: str) -> str:
    """Return a text that can be an argument or a path; BadInput if no program could receive it. It may be secret."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise BadInput(
            f"{what} has {kind_of(value)} in the place of a text", "str(), or os.fspath() of a path, makes one"
        )
    text = os.fsdecode(value)
    try:
        has_nul = b"\0" in os.fsencode(text)
    except UnicodeEncodeError as err:
        raise BadInput(f"{what} has half of a surrogate pair", "os.fsdecode() makes a text of any bytes") from err
    if has_nul:
        raise BadInput(f"{what} has a NUL byte", "no program could receive it")
    return text


def name_of(value: str, what: str) -> str:
    """Return a name that is compared only; BadInput if it is not a text."""
    if not isinstance(value, str):
        raise BadInput(f"{what} is {kind_of(value)}, not a text")
    return value


def path_of(value: str | bytes | os.PathLike[str], what: str) -> str:
    """Return a path; BadInput if it is empty, as a variable that is not set: it would be the working directory."""
    path = text_of(value, what)
    if not path:
        raise BadInput(f"{what}: the path is empty", 'write "." for the working directory')
    return path


def seconds_of(value: float | None, what: str) -> float | None:
    """Return a number of seconds, or None; BadInput if it is not a number."""
    if value is None:
        return None
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{what}={shown(value)}", "a number of seconds") from None
    if math.isnan(seconds):
        raise BadInput(f"{what}=nan", "a number of seconds")
    return seconds


def count_of(value: int, what: str) -> int:
    """Return a number from 0 on; BadInput if it is something else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise BadInput(f"{what}={shown(value)}", "a whole number") from None
    if number < 0:
        raise BadInput(f"{what}={shown(value)}", "a whole number from 0 on")
    return number


def bytes_of(value: bytes, what: str) -> bytes:
    """Return bytes, or what holds them; BadInput for something else. They may be secret."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise BadInput(f"{what} is {kind_of(value)}, not bytes", "encode() of a text makes bytes")
    return bytes(value)


def kind_of(value: object) -> str:
    """Return the name of a value's type, as it stands in an error."""
    return printable(type(value).__name__, 40)


def shown(value: object) -> str:
    """Return a value of any type as it stands in an error, on one line."""
    try:
        return printable(repr(value), 60)
    except Exception:  # a number of thousands of digits, or a class of the program
        return kind_of(value)
