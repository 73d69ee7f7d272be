"""Debug messages on standard error, for --debug. Importing logging would take a fifth of the runner's start-up time."""

from __future__ import annotations

import sys

from rootdisk.text import error_text

_shown = False


def show() -> None:
    """Show debug messages from now on."""
    global _shown
    _shown = True


def is_shown() -> bool:
    """Return whether debug messages are shown."""
    return _shown


def debug(text: str) -> None:
    """Print `text`, made safe to show, if debug messages are shown."""
    if _shown:
        print(f"runner: {error_text(text)}", file=sys.stderr, flush=True)
