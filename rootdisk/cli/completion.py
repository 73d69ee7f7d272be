"""Completion for bash, zsh and fish, made from the parser of a command line with commands.

All that a shell needs to know is in the script, so completing starts no process. If nothing better is known it completes
file names, which artifacts in OCI layouts are too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rootdisk.cli.arguments import subparsers


class Option(NamedTuple):
    """An option, or an argument without any flags; `value` is its metavar, "" if it takes none."""

    flags: tuple[str, ...]
    help: str
    value: str
    choices: tuple[str, ...]
    repeats: bool


class Command(NamedTuple):
    """A command, its line of help and its options."""

    name: str
    help: str
    options: tuple[Option, ...]

    def flags(self) -> list[str]:
        """Return the flags of all options."""
        return [flag for option in self.options for flag in option.flags]


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of `parser`'s program for "bash", "zsh" or "fish"."""
    makers: dict[str, Callable[[str, Command, list[Command]], Iterator[str]]] = {
        "bash": _bash, "zsh": _zsh, "fish": _fish,
    }  # fmt: skip
    options = Command("", parser.description or "", tuple(_options(parser)))
    lines = makers[shell](parser.prog, options, _commands(parser))
    return "".join(f"{line}\n" for line in lines)


def _commands(parser: argparse.ArgumentParser) -> list[Command]:
    words = {
        choice.dest: choice.help or ""
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    }
    return [Command(name, words.get(name, ""), tuple(_options(sub))) for name, sub in subparsers(parser).items()]


def _options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        takes = action.nargs != 0
        value = str(action.metavar or action.dest.upper()) if takes else ""
        many = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+", "...")
        choices = tuple(map(str, action.choices or ()))
        yield Option(tuple(action.option_strings), (action.help or "").replace("%%", "%"), value, choices, many)


def _bash(program: str, top: Command, commands: list[Command]) -> Iterator[str]:
    names = [command.name for command in commands]
    yield f"_{program}() {{"
    yield "    local command= word words="
    yield '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield f"        case $word in {' | '.join(names)}) command=$word; break ;; esac"
    yield "    done"
    yield "    case $command:${COMP_WORDS[COMP_CWORD-1]} in"
    values: dict[str, list[str]] = {}
    for command in commands:
        for option in command.options:
            if option.value:
                words = values.setdefault(" ".join(option.choices), [])
                words += [f"{command.name}:{flag}" for flag in option.flags]
    for choices, patterns in values.items():
        if patterns:
            yield f"        {' | '.join(patterns)}) words='{choices}' ;;"
    yield "        *) case $command:${COMP_WORDS[COMP_CWORD]} in"
    for command in (top, *commands):
        yield f"            {command.name}:-*) words='{' '.join(command.flags())}' ;;"
        arguments = [choice for option in command.options if not option.flags for choice in option.choices]
        if arguments:
            yield f"            {command.name}:*) words='{' '.join(arguments)}' ;;"
    yield f"            :*) words='{' '.join(names)}' ;;"
    yield "        esac ;;"
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))'
    yield "}"
    yield f"complete -o bashdefault -o default -F _{program} {program}"


def _zsh(program: str, top: Command, commands: list[Command]) -> Iterator[str]:
    def quoted(text: str) -> str:
        """Quote a word for the shell."""
        return "'" + text.replace("'", "'\\''") + "'"

    def words(text: str) -> str:
        """Escape characters that have a meaning in a specification of zsh's _arguments."""
        return text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")

    def values(option: Option) -> str:
        """Say how the value of an option is completed."""
        return f":{words(option.value)}:" + (f"({' '.join(option.choices)})" if option.choices else "_files")

    def specs(command: Command) -> Iterator[str]:
        """Yield the specifications of a command's options for _arguments."""
        for option in command.options:
            if not option.flags:
                yield quoted(("*" if option.repeats else "") + values(option))
            for flag in option.flags:
                others = "*" if option.repeats else f"({' '.join(option.flags)})"
                sign = "" if not option.value else "=" if flag.startswith("--") else "+"
                yield quoted(f"{others}{flag}{sign}[{words(option.help)}]" + (values(option) if option.value else ""))

    yield f"#compdef {program}"
    yield f"_{program}() {{"
    yield "    local curcontext=$curcontext state line"
    yield "    local -a commands=("
    for command in commands:
        yield f"        {quoted(f'{command.name}:{words(command.help)}')}"
    yield "    )"
    yield f"    _arguments -C {' '.join(specs(top))} '1:command:->command' '*::argument:->arguments'"
    yield "    case $state in"
    yield "        command) _describe command commands ;;"
    yield "        arguments) case $words[1] in"
    for command in commands:
        yield f"            {command.name}) _arguments {' '.join(specs(command))} ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "}"
    # Autoloaded by its name it is the function's body; else it is sourced.
    yield f'if [ "$funcstack[1]" = _{program} ]; then _{program} "$@"; else compdef _{program} {program}; fi'


def _fish(program: str, top: Command, commands: list[Command]) -> Iterator[str]:
    def quoted(text: str) -> str:
        """Quote a word for the shell."""
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    def line(condition: str, command: Command) -> Iterator[str]:
        """Yield a line for each option of a command, valid under `condition`."""
        for option in command.options:
            flags = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
            choices = [f"-x -a {quoted(' '.join(option.choices))}"] if option.choices else []
            takes = ["-r"] if option.value and not option.choices and option.flags else []
            if flags or choices:
                rest = " ".join((*flags, *choices, *takes, "-d", quoted(option.help)))
                yield f"complete -c {program} -n {condition} {rest}"

    for command in commands:
        yield f"complete -c {program} -n __fish_use_subcommand -f -a {command.name} -d {quoted(command.help)}"
    yield from line("__fish_use_subcommand", top)
    for command in commands:
        yield from line(f"'__fish_seen_subcommand_from {command.name}'", command)
