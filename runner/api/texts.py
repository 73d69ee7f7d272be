"""Texts that a program gives to the API. A command's arguments cannot hold what is refused here."""

from __future__ import annotations

import os

from rootdisk.errors import BadInput


def text_of(value: str | os.PathLike[str], what: str) -> str:
    """Return a text that can be an argument or a path; BadInput if no program could receive it. It may be secret."""
    text = os.fspath(value)
    try:
        has_nul = b"\0" in os.fsencode(text)
    except UnicodeEncodeError as err:
        raise BadInput(f"{what} has half of a surrogate pair", "os.fsdecode() makes a text of any bytes") from err
    if has_nul:
        raise BadInput(f"{what} has a NUL byte", "no program could receive it")
    return text
