"""Find the user's directories: environment variables of the XDG Base Directory Specification, else the home directory."""

from __future__ import annotations

import os
from pathlib import Path

from rootdisk.errors import BadInput
from rootdisk.text import printable


def user_folder(variable: str, below_home: str, alternative: str) -> Path:
    """Return the directory that the environment variable `variable` names, else `below_home` in the home directory.

    Raises:
        BadInput: The user has no home directory. The hint names `alternative`, another variable that can be set.
    """
    folder = named_folder(variable)
    if folder is not None:
        return folder
    home_folder = home()
    if home_folder is None:
        text = os.environ.get("HOME")
        what = (
            f"{printable(text, 80)} is not an absolute path"
            if text
            else f"HOME is not set, and /etc/passwd has none for user {os.getuid()}"
        )
        raise BadInput(f"no home directory: {what}", f"set HOME or {alternative}")
    return home_folder / below_home


def named_folder(variable: str) -> Path | None:
    """Return the directory that `variable` names. Return None if it is unset or relative: the specification says to ignore it."""
    text = os.environ.get(variable, "")
    return Path(text) if text.startswith("/") else None


def home() -> Path | None:
    """Return the home directory: $HOME, else from the user database. Return None if it is not an absolute path."""
    text = os.environ.get("HOME")
    if not text:
        import pwd  # rarely needed

        try:
            text = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(text) if text.startswith("/") else None
