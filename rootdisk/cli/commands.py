"""A tool's commands as a table, and parsers for them.

A command line is parsed by a parser of its own command only: those of all commands, even without options, take three times as long
to build, which is 8 ms of every start.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

from rootdisk.cli.arguments import Parser


class Command(NamedTuple):
    """A command: its module in the tool's commands/, its line in --help, and the function that adds its options."""

    room: str
    help: str
    fill: Callable[[argparse.ArgumentParser], None]
    epilog: str = ""
    examples: tuple[str, ...] = ()  # what stands behind the command
    alias: str = ""


def add_commands(
    top: Parser,
    commands: Mapping[str, Command],
    add_common: Callable[[argparse.ArgumentParser], None],
    only: str | None,
) -> None:
    """Give a tool's parser its commands, and each of them what `add_common` adds.

    With `only`, the name of a command, it has that one alone; with any other word, all names and no options.
    """
    below = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    is_alone = only in commands or only in {command.alias for command in commands.values() if command.alias}
    for name, command in commands.items():
        names = [name, command.alias] if command.alias else [name]
        if is_alone and only not in names:
            continue
        words = f"{command.help[0].upper()}{command.help[1:]}."
        examples = ["examples:", *(f"  {top.prog} {name} {example}" for example in command.examples)]
        epilog = "\n".join(examples) if command.examples else command.epilog
        own = below.add_parser(name, help=command.help, description=words, epilog=epilog, aliases=names[1:])
        own.elsewhere = top.elsewhere
        if only is None or only in names:
            own.set_defaults(command=name)
            add_common(own)
            command.fill(own)


def load(package: str, commands: Mapping[str, Command], name: str) -> Callable[[argparse.Namespace], int]:
    """Return the function NAME_command of the command's module in `package`. It is loaded now: --help needs none of them."""
    module = importlib.import_module(f"{package}.{commands[name].room}")
    return cast("Callable[[argparse.Namespace], int]", getattr(module, f"{name}_command"))
