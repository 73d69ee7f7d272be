"""Where in a TOML file a value stands, so that an error about it can say so: tomllib keeps no line numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import BadInput
from runner.reference import Reference

Keys = tuple[str, ...]

_KINDS = {bool: "true or false", str: "a string", int: "a number", float: "a number", list: "a list", dict: "a table"}


class Where(NamedTuple):
    """A value of the file and the keys that lead to it."""

    value: Any
    file: Path
    text: str
    keys: Keys = ()

    @classmethod
    def parse(cls, text: str, file: Path) -> Where:
        """The whole file; BadInput with the line where it is not TOML."""
        import tomllib  # the command line has no TOML

        try:
            return cls(tomllib.loads(text), file, text)
        except (tomllib.TOMLDecodeError, RecursionError) as err:
            what, _, place = str(err).partition(" (at ")
            line = f", {place.rstrip(')')}" if place else ""
            raise BadInput(f"{file.name}{line}: not TOML: {what}") from err

    def __truediv__(self, key: str) -> Where:
        return self._replace(value=self.value[key], keys=(*self.keys, key))

    @property
    def key(self) -> str:
        return self.keys[-1]

    def error(self, what: str, hint: str = "") -> BadInput:
        """The error that this value `what`."""
        number = line_of(self.text, self.keys)
        line = f", line {number}" if number else ""
        return BadInput(f"{self.file.name}{line}: {'.'.join(self.keys)}: {what}", hint)

    def unknown(self, known: tuple[str, ...]) -> BadInput:
        """The error that there is no such key."""
        near = difflib.get_close_matches(self.key, known, n=1)
        return self.error("unknown key", f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}")

    def kind(self) -> str:
        return _KINDS.get(type(self.value), "a date")

    def _typed(self, type_: type) -> Any:
        if type(self.value) is not type_:  # a bool is an int to isinstance
            hint = f'write "{self.value}"' if type_ is str and isinstance(self.value, int | float) else ""
            raise self.error(f"is {self.kind()}, expected {_KINDS[type_]}", hint)
        return self.value

    def table(self) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self._typed(dict)
        return value

    def string(self) -> str:
        value: str = self._typed(str)
        return value

    def boolean(self) -> bool:
        value: bool = self._typed(bool)
        return value

    def integer(self) -> int:
        value: int = self._typed(int)
        return value

    def path(self) -> Path:
        """A file's name, relative to the file's directory."""
        text = self.string()
        if not text or "\0" in text:
            raise self.error(f"{text!r:.80} is no path")
        return (self.file.parent / text).absolute()

    def anchored(self, reference: Reference) -> Reference:
        """The reference with its path, where it has one, made absolute in the same way."""
        if reference.path is None:
            return reference
        return reference._replace(path=(self.file.parent / reference.path).absolute())


def line_of(text: str, keys: Keys) -> int:
    """The line, from 1, where `keys` stand in the TOML `text`; that of the nearest table above where they do not."""
    lines: dict[Keys, int] = {}
    for path, number in _lines(text):
        lines.setdefault(path, number)
    while keys and keys not in lines:
        keys = keys[:-1]
    return lines.get(keys, 0)


_BLANK = re.compile(r"\s*(#.*)?\Z")


def _lines(text: str) -> Iterator[tuple[Keys, int]]:
    """Every key of a valid document and its line. A statement is as many lines as it takes until TOML accepts it."""
    import tomllib

    prefix: Keys = ()
    statement, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not statement and _BLANK.match(line):
            continue
        first = first if statement else number
        statement += line + "\n"
        try:
            value = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            for path in _paths(value):  # a table's header makes the tables above it
                prefix = path
                yield path, first
        else:
            for path in _paths(value):
                yield prefix + path, first
        statement = ""


def _paths(value: Any) -> Iterator[Keys]:
    if isinstance(value, list) and value:  # [[table]]
        yield from _paths(value[-1])
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (key,)
            for path in _paths(inner):
                yield (key, *path)
