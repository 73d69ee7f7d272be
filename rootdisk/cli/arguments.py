"""Command lines as both tools have them: help as wide as the terminal, and errors of one line that say what was meant."""

from __future__ import annotations

import argparse
import functools
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rootdisk.errors import BadInput

if TYPE_CHECKING:
    from typing import Any, NoReturn


@functools.cache
def _columns() -> int:
    """As shutil's, which takes longer to load than all of --help to write."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
    except (OSError, ValueError):
        return 80


class Help(argparse.HelpFormatter):
    """As argparse's, but that lines of examples stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=max(_columns() - 2, 20))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "\n".join(indent + line for line in text.splitlines())


def did_you_mean(name: str, names: Iterable[str], otherwise: str) -> str:
    """A hint: the nearest of `names`, or `otherwise`."""
    import difflib

    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else otherwise


def whole_number(text: str) -> int:
    """An option's number: digits, perhaps with a sign; int() would take 1_0 and digits of any script."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a whole number")
    return int(text)


def decimal_number(text: str) -> float:
    """An option's number as 10 or 0.5; float() would take nan, inf and 1e400."""
    if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number")
    return float(text)


class Parser(argparse.ArgumentParser):
    """Raises BadInput, with the nearest command, option or choice."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Help, **options})

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']+)'.*\(choose from (.*)\)", message)
        see = f"see {self.prog} --help"
        hint = did_you_mean(wrong[1], re.findall(r"[^\s',]+", wrong[2]), see) if wrong else see
        raise BadInput(message.split(" (choose")[0], hint)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = subparsers(self).get(getattr(options, "command", None) or "", self)
            known = [flag for action in parser._actions for flag in action.option_strings]
            hint = did_you_mean(unknown[0].partition("=")[0], known, f"see {parser.prog} --help")
            raise BadInput(f"unrecognized arguments: {' '.join(unknown)}", hint)
        return options


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A parser's commands and their parsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}
