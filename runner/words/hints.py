"""Hints for words of docker, of podman and of the other tool."""

from __future__ import annotations

from runner.words.docker import COMMANDS, FIELDS, GLOBAL, GROUPS, NOT, OPTIONS, PAIRS, SAME, VALUES
from runner.words.podman import PODMAN_COMMANDS, PODMAN_OPTIONS

_OURS = {"boot": "run"}


def answer(command: str, word: str) -> str:
    """Name what to type for docker's or podman's command `word`, or for the option `word` of `command`; "" if they have none.

    A command may have two words, as "image prune", and an option a value, as "--network=host".
    """
    if command or word.startswith("-"):
        command = _OURS.get(command, command)
        docker = {**GLOBAL, **OPTIONS.get(command, {}), **VALUES.get(command, {})}
        podman = PODMAN_OPTIONS.get(command, {})
    else:
        docker, podman = {**COMMANDS, **PAIRS, **_in_groups()}, PODMAN_COMMANDS
    for whose, table in (("docker", docker), ("podman", podman)):
        found = table.get(word, SAME)
        if found.startswith(NOT):
            return f"{whose}'s {word} is not here: {found.removeprefix(NOT)}"
        if found != SAME:
            return f"here {whose}'s {word} is {found}"
    return ""


def answer_field(path: str) -> str:
    """Name what to write for a field of `docker inspect`, as State.Running; "" if it has none of that name."""
    found = FIELDS.get(path.lower(), "")
    if found.startswith(NOT):
        return f"docker's .{path} is not here: {found.removeprefix(NOT)}"
    return f"here docker's .{path} is {{{{.{found}}}}}" if found else ""


def _in_groups() -> dict[str, str]:
    """Return the commands of two words whose second word is a command too."""
    alone = {name: f"runner {name}" if found == SAME else found for name, found in COMMANDS.items()}
    return {
        pair: found for group in GROUPS for name, found in alone.items() if (pair := f"{group} {name}") not in PAIRS
    }
