"""Notices to the user that are not errors: a command prints them; in other programs they go nowhere."""

from __future__ import annotations

from collections.abc import Callable

_show: Callable[[str], None] | None = None


def show_by(function: Callable[[str], None]) -> None:
    """Give notices to `function` from now on."""
    global _show
    _show = function


def notice(text: str) -> None:
    """Tell the user `text`, which may have foreign words in it."""
    if _show is not None:
        _show(text)
