"""The user's directories, as the environment names them (XDG Base Directory Specification)."""

from __future__ import annotations

import os
from pathlib import Path

from rootdisk.errors import BadInput
from rootdisk.text import printable


def user_folder(variable: str, below_home: str, instead: str) -> Path:
    """The directory that `variable` names, else `below_home`.

    BadInput if there is no home directory; `instead` is another variable that could be set.
    """
    named = named_folder(variable)
    if named is not None:
        return named
    found = home()
    if found is None:
        text = os.environ.get("HOME")
        what = (
            f"{printable(text, 80)} is not an absolute path"
            if text
            else f"HOME is not set, nor in /etc/passwd for {os.getuid()}"
        )
        raise BadInput(f"no home directory: {what}", f"set HOME or {instead}")
    return found / below_home


def named_folder(variable: str) -> Path | None:
    """The directory that `variable` names; None if it names none, or a relative one, which the specification has ignored."""
    text = os.environ.get(variable, "")
    return Path(text) if text.startswith("/") else None


def home() -> Path | None:
    """The user's home directory: $HOME, else as the system's list of users says; None if that is no absolute path."""
    text = os.environ.get("HOME")
    if not text:
        import pwd  # rarely needed

        try:
            text = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(text) if text.startswith("/") else None
