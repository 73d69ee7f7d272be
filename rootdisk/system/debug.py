"""What --debug shows, on standard error. Not logging, which takes a fifth of the runner's start to load."""

from __future__ import annotations

import sys

from rootdisk.text import error_text

_shown = False


def show() -> None:
    """From now on."""
    global _shown
    _shown = True


def is_shown() -> bool:
    return _shown


def debug(text: str) -> None:
    if _shown:
        print(f"runner: {error_text(text)}", file=sys.stderr, flush=True)
