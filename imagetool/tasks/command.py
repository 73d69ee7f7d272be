"""`imagetool doit`: doit's commands on a project's graph. What is typed wrong is one line with the nearest word."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from doit.cmdparse import CmdParseError
from doit.doit_cmd import DoitMain
from doit.exceptions import InvalidCommand, InvalidTask

from rootdisk.cli.arguments import did_you_mean
from rootdisk.text import error_text

_OPTIONS = {"num_process": "-n", "verbosity": "-v", "par_type": "-P"}  # those that have another name in doit's errors
WRONG_INPUT = 3  # doit's exit status for an error before any task starts


class Main(DoitMain):  # type: ignore[misc]
    """doit under our name."""

    BIN_NAME = "imagetool doit"

    def get_cmds(self) -> Any:
        """Return doit's commands, whose errors are ours."""
        commands = super().get_cmds()
        del commands["dumpdb"]  # it knows databases of another kind only
        for name in list(commands):
            command = commands.get_plugin(name)
            commands[name] = type(command.__name__, (_OneLine, command), {})
        return commands


class _OneLine:
    """A command of doit that prints an error of its words as one line."""

    def parse_execute(self, words: Sequence[str]) -> int:
        """Parse the words and run; return the exit status."""
        try:
            return int(super().parse_execute(words) or 0)  # type: ignore[misc]
        except (CmdParseError, InvalidCommand, InvalidTask) as err:
            shown = _line(err, self._names(), self._tasks_with)
        except KeyError as err:  # doit's `info` looks a task up without asking if there is one
            if len(err.args) != 1 or err.args[0] not in words:
                raise
            shown = _unknown(str(err.args[0]), self._names())
        print(f"doit: {error_text(shown)}", file=sys.stderr)
        return WRONG_INPUT

    def _names(self) -> list[str]:
        """Return the names of tasks, as far as they are loaded, and of commands."""
        return [task.name for task in getattr(self, "task_list", None) or ()] + list(getattr(self, "cmds", None) or ())

    def _tasks_with(self, option: str) -> list[str]:
        """Return the names of tasks that have this option, as far as they are loaded."""
        tasks = getattr(self, "task_list", None) or ()
        return [task.name for task in tasks if any(option == f"--{known.get('long')}" for known in task.params)]


def _unknown(word: str, names: Sequence[str]) -> str:
    hint = did_you_mean(word, names, "see imagetool doit list --all")
    return f"{word!r:.80} is neither a task nor a command: {hint}"


def _line(err: Exception, names: Sequence[str], tasks_with: Callable[[str], list[str]]) -> str:
    if isinstance(err, InvalidCommand) and (one := re.match(r"`?(\w+)`? failed, must select \*one\*", str(err))):
        return f"{one[1]} needs the name of one task: imagetool doit {one[1]} build:NAME"
    if isinstance(err, InvalidCommand) and "check_file_uptodate" in str(err):
        return f"{str(err).partition(' Type ')[0].rstrip('.')}: see imagetool doit help run"
    if isinstance(err, InvalidCommand):
        named = re.match("'(.*)'", str(err.args[0])) if err.args else None
        return _unknown(err.not_found or (named[1] if named else ""), names)
    value = re.match(
        r"Error parsing parameter '(\w+)'(?:. Provided ('.*') but available choices are: (.*)\.| .*\n.*: ('.*'))",
        str(err),
    )
    if value is not None:
        option = _OPTIONS.get(value[1], f"--{value[1].replace('_', '-')}")
        return (
            f"{option} {value[2]}: choose from {value[3]}" if value[2] else f"{option} {value[4]}: write a whole number"
        )
    text, _, rest = str(err).partition(" (parsing options")
    text = re.sub(r"^Error parsing [^:]*: ", "", text)
    unknown = re.match(r"option (\S+) not recognized", text)
    if unknown is None:
        return re.sub(r"^option (\S+) requires argument$", r"\1 needs a value", text)
    if tasks := tasks_with(unknown[1]):
        return f"{unknown[1]} is not an option here: imagetool doit {tasks[-1]} has it"
    options = [f"--{name}" for name in re.findall(r"'long':'([\w-]+)'", rest)]
    hint = did_you_mean(
        unknown[1],
        options,
        f"known are {', '.join(options)}"
        if options[:8] == options != []
        else "see imagetool doit help run"
        if options
        else "there are none here",
    )
    return f"{unknown[1]} is not an option: {hint}"
