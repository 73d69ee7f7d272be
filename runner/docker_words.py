"""Docker's commands and options, and ours for each. Error hints and docs/howto/docker.md come from it."""

from __future__ import annotations


def answer(command: str, word: str) -> str:
    """Name what to type for docker's command `word`, or for its option `word` of `command`; "" if it is none."""
    return ""
