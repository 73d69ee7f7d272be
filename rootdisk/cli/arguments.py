"""Command lines of both tools: help as wide as the terminal, and one-line errors that suggest what was meant."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from rootdisk.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, NoReturn

# Our errors are made of argparse's, so those stay English; and to look for translations takes an eighth of a start.
argparse._ = str  # type: ignore[attr-defined]


@functools.cache
def _columns() -> int:
    """Return the terminal's width; shutil's function takes longer to load than --help takes to write."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
    except (OSError, ValueError):
        return 80


class Help(argparse.HelpFormatter):
    """A formatter that does not wrap lines of examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=max(_columns() - 2, 20))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "\n".join(indent + line for line in text.splitlines())


def did_you_mean(name: str, names: Iterable[str], otherwise: str) -> str:
    """Return a hint: the nearest of `names`, or `otherwise`."""
    import difflib

    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else otherwise


def whole_number(text: str) -> int:
    """Return an option's number: digits, perhaps with a sign. int() would take 1_0 and digits of any script."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        what = "has more than 18 digits" if re.fullmatch("-?[0-9]+", text) else "is not a whole number"
        raise argparse.ArgumentTypeError(f"{text!r:.40} {what}")
    return int(text)


def decimal_number(text: str) -> float:
    """Return an option's number as 10 or 0.5. float() would take nan, inf and 1e400."""
    if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number")
    return float(text)


def seconds(text: str) -> float:
    """Return an option's time in seconds, as 90 or 0.5. The error has what to write for 5s, 2m and the like."""
    return _time(text, 1, "seconds", decimal_number)


def whole_seconds(text: str) -> int:
    """Return an option's time in whole seconds."""
    return int(_time(text, 1, "whole seconds", whole_number))


def days(text: str) -> float:
    """Return an option's time in days, as 7 or 0.5."""
    return _time(text, _UNITS_S["d"], "days", decimal_number)


_UNITS_S = {"": 0, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _time(text: str, unit_s: int, what: str, parse: Callable[[str], float]) -> float:
    try:
        return parse(text)
    except argparse.ArgumentTypeError:
        said = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
        number = int(said[1]) * _UNITS_S[said[2]] / unit_s if said else 0
        example = f"{number:.15g}" if number and (unit_s > 1 or number == int(number)) else "10"
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number of {what}: write {example}") from None


def processors(text: str) -> int:
    """Return an option's number of processors: a guest has whole ones."""
    if re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number: write {int(float(text)) + (float(text) % 1 > 0) or 1}"
        )
    return whole_number(text)


def file_path(text: str) -> Path:
    """Return an option's path. Refuse an empty one, as from an unset shell variable: it would mean the working directory."""
    from pathlib import Path  # --help and most commands of the runner do not need it

    if not text:
        raise argparse.ArgumentTypeError("the name of a file is empty")
    return Path(text)


def command_first(words: Sequence[str], valued: Collection[str] = ()) -> list[str]:
    """Move options that stand before the command behind it: `--debug ls X` becomes `ls --debug X`.

    `valued` are the options that take the next word as their value.
    """
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in _OF_THE_TOOL:
        at += 2 if words[at] in valued else 1
    return [*words[at : at + 1], *words[:at], *words[at + 1 :]]


_OF_THE_TOOL = ("-", "--", "-h", "--help", "-v", "--version")


class Parser(argparse.ArgumentParser):
    """A parser that raises BadInput with the nearest command, option or choice.

    `elsewhere` may know a wrong command or option: it returns what to type in its place, or "".
    """

    # (command, word): "" and a command, which may have two words, or a command and its option
    elsewhere: Callable[[str, str], str] | None = None
    _words: Sequence[str] = ()  # of the command line

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Help, **options})

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an argument. One that may be left out is never called missing."""
        action = super().add_argument(*names, **options)
        if action.nargs in (argparse.ZERO_OR_MORE, argparse.REMAINDER):
            action.required = False
        return action

    def error(self, message: str) -> NoReturn:
        """Raise BadInput with `message` and the nearest choice."""
        wrong = re.search(r"invalid choice: '([^']*)'.*\(choose from (.*)\)", message)
        see = f"see {self.prog} --help"
        if wrong and message.startswith("argument COMMAND"):
            known = self._known_command(wrong[1])
            raise BadInput(f"{wrong[1]!r:.80} is not a command", known or did_you_mean(wrong[1], subparsers(self), see))
        hint = see
        if wrong:
            choices = re.findall(r"[^\s',]+", wrong[2])
            option = re.match(r"argument (?:-\w/)?(--[\w-]+)", message)
            known = self._ask(f"{option[1]}={wrong[1]}") if option else ""
            hint = known or did_you_mean(wrong[1], choices, f"write {', '.join(choices[:-1])} or {choices[-1]}")
        # "argument -t/--time: invalid choice: 'x' (choose …)" becomes "--time: 'x'".
        message = message.split(" (choose")[0].replace(": invalid choice: ", ": ")
        message = re.sub(r"^argument (?:-\w/)?([^:/]+)[^:]*: ", r"\1: ", message)
        if valued := re.fullmatch(r"(.*): ignored explicit argument .*", message, re.DOTALL):  # which may be a password
            message, hint = f"{valued[1]} takes no value", f"write {valued[1]} alone, or leave it out"
        fact, write, example = message.rpartition(": write ")
        if write:
            message, hint = fact, f"write {example}"
        raise BadInput(re.sub("^the following arguments are required: ", "missing: ", message), hint)

    def _ask(self, word: str) -> str:
        """Return what to type for an option that another tool has of this parser's command; "" if it has none."""
        return self.elsewhere(self.get_default("command") or "", word) if self.elsewhere else ""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Return what an abbreviation may stand for. One that is another tool's option, such as --pid for --pid1, is none."""
        found: list[Any] = super()._get_option_tuples(option_string)
        hint = self._ask(option_string.partition("=")[0]) if found and option_string.startswith("--") else ""
        return [one for one in found if not hint or (hint.endswith(f" {one[1]}") and one[0].nargs != 0)]

    def _known_command(self, command: str) -> str:
        """Return what to type for a command that another tool has, by its second word too.

        Raises:
            BadInput: The word is the value of another tool's option, which stands before the command.
        """
        if self.elsewhere is None:
            return ""
        flag = self._words[1] if self._words[:1] == (command,) and len(self._words) > 1 else ""
        if flag.startswith("-") and not set(subparsers(self)).isdisjoint(self._words[2:]):
            flag = flag.partition("=")[0]
            if hint := self.elsewhere("", flag):  # command_first() has put it behind its value
                raise BadInput(f"unrecognized arguments: {flag}", hint)
        at = self._words.index(command) if command in self._words else len(self._words)
        return self.elsewhere("", " ".join(self._words[at : at + 2])) or self.elsewhere("", command)

    def _known_option(self, command: str) -> str:
        """Return what to type for the first option of the command line that another tool has."""
        flags = (flag for word in self._words for flag in _flags(word))
        return next(filter(None, (self.elsewhere(command, flag) for flag in flags)), "") if self.elsewhere else ""

    def _refuse_letter(self, command: str) -> None:
        """Raise BadInput for the first option of a word such as -itx that the command does not have."""
        parser = subparsers(self).get(command, self)
        known = {flag: action for action in parser._actions for flag in action.option_strings}
        for word in self._words:
            for flag in _flags(word)[1:]:
                if flag not in known:
                    hint = self.elsewhere(command, flag) if self.elsewhere else ""
                    raise BadInput(f"unrecognized arguments: {flag}", hint or f"see {parser.prog} --help")
                if known[flag].nargs != 0:  # the rest is its value
                    break

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse a whole command line; BadInput says which word is wrong and what to type."""
        self._words = tuple(args if args is not None else sys.argv[1:])
        try:
            options, unknown = self.parse_known_args(args, namespace)
        except BadInput as err:
            command = next((word for word in self._words if not word.startswith("-")), "")
            if err.message.startswith("missing: "):
                raise BadInput(err.message, self._known_option(command) or err.hint) from None
            option = err.message.removesuffix(" takes no value")
            if option != err.message and not any(word.startswith(f"{option}=") for word in self._words):
                self._refuse_letter(command)  # of a word such as -fv: what follows -f is taken for its value
            raise
        if unknown:
            command = getattr(options, "command", None) or ""
            parser = subparsers(self).get(command, self)
            known = [flag for action in parser._actions for flag in action.option_strings]
            word = next((word for word in unknown if word.startswith("-")), unknown[0])
            hints = (self.elsewhere(command, flag) for flag in (*_flags(word), _shown(word))) if self.elsewhere else ()
            nearest = did_you_mean(_shown(word), known, f"see {parser.prog} --help")
            hint = next(filter(None, hints), "") or (nearest if word.startswith("-") else _takes(parser))
            flags = [_shown(one) for one in unknown if one.startswith("-")]
            raise BadInput(f"unrecognized arguments: {' '.join(flags or unknown)}", hint)
        return options


def _flags(word: str) -> list[str]:
    """Return the options that a word may stand for: --name of --name=value, and each letter of -af."""
    if not word.startswith("-"):
        return []
    letters = word[1:] if re.fullmatch("-[A-Za-z]{2,4}", word) else ""
    return [word.partition("=")[0], *(f"-{letter}" for letter in letters)]


def _shown(word: str) -> str:
    """Return an option without its value, which may be a password: --name of --name=value, -p of -pvalue."""
    return word.partition("=")[0] if word.startswith("--") else word[:2]


def _takes(parser: argparse.ArgumentParser) -> str:
    """Return a hint for one word too many."""
    names = [str(action.metavar or action.dest) for action in parser._actions if not action.option_strings]
    return f"{parser.prog} takes " + (f"{' '.join(names)} alone" if names else "options only")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return a parser's commands and their parsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}
