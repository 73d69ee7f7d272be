"""Manual pages, made from the parser of a command line: man(7), groff's macros."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from rootdisk.cli.arguments import subparsers


def manual(parser: argparse.ArgumentParser, *, statuses: dict[str, str], also: tuple[str, ...]) -> str:
    """Return the manual page of `parser`'s program, section 1.

    `statuses` are its exit statuses, `also` other pages to see.
    """
    name = parser.prog
    lines = [
        f'.TH {name.upper()} 1 "" rootdisk',
        ".SH NAME",
        f"{name} \\- {_text((parser.description or '').rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {name}",
        "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        _text(f"{parser.description or ''} {parser.epilog or ''}".strip()),
        ".SH OPTIONS",
        *_options(parser),
        ".SH COMMANDS",
    ]
    words = {
        choice.dest: choice.help or ""
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    }
    done: set[int] = set()
    for command, below in subparsers(parser).items():
        if id(below) in done:  # another name of one that was there
            continue
        done.add(id(below))
        places = [_argument(action) for action in below._actions if not action.option_strings]
        usage = " ".join([name, command, "[OPTIONS]", *places])
        help_text = next((text for key, text in words.items() if key.partition(" ")[0] == command), "")
        lines += [f'.SS "{_text(f"{name} {command}")}"', _text(help_text[:1].upper() + help_text[1:] + "."), ".PP"]
        lines += [f"\\fB{_text(usage)}\\fR", *_options(below)]
        if below.epilog:
            lines += [".PP", ".nf", *map(_text, below.epilog.strip().splitlines()), ".fi"]
    lines.append('.SH "EXIT STATUS"')
    for status, meaning in statuses.items():
        lines += [".TP", f".B {_text(status)}", _text(meaning)]
    lines += ['.SH "SEE ALSO"', ",\n".join(f".BR {page} (1)" for page in also)]
    return "\n".join(lines) + "\n"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        value = (
            "" if action.nargs == 0 else str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest)
        )
        names = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in action.option_strings)
        yield ".TP"
        yield f"{names} \\fI{_text(value)}\\fR".strip() if value or not names else names
        yield _text((action.help or "").replace("%%", "%")) or "\\&"


def _argument(action: argparse.Action) -> str:
    text = str(action.metavar or action.dest.upper())
    forms = {"?": f"[{text}]", "*": f"[{text} ...]", "+": f"{text} ...", argparse.REMAINDER: f"[{text} ...]"}
    return forms.get(str(action.nargs), text)


def _text(text: str) -> str:
    """Escape text, so that groff shows it unchanged."""
    text = re.sub(r"\s+", " ", text).replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("×", "x")
    return f"\\&{text}" if text.startswith((".", "'")) else text
