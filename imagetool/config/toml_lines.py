"""Find the position of values in a TOML file, for error messages: tomllib keeps no positions."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.errors import BadInput
from rootdisk.oci.fields import DEPTH_MAX, nests_deeper
from rootdisk.oci.reference import Reference
from rootdisk.text import printable

Keys = tuple[str | int, ...]  # a number counts in an array, from 0
Position = tuple[int, int]  # line and column, both from 1

_KINDS = {bool: "true or false", str: "a string", int: "a number", float: "a number", list: "a list", dict: "a table"}


# As Docker Compose has it: ${NAME}, ${NAME:-default}, and $${ for a plain ${.
_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{[^}]*\}?")


class Substituted(str):
    """A string in which variables were replaced; if a number, true or false is expected, it may be one."""


class Where(NamedTuple):
    """A value of the file and the keys that lead to it."""

    value: Any
    file: Path
    text: str
    keys: Keys = ()
    variables: Mapping[str, str] | None = None  # what ${NAME} in strings is; None: strings stay as they are
    options: Mapping[str, str] | None = None  # of the command line: what it calls the keys of an image

    @classmethod
    def parse(cls, text: str, file: Path, variables: Mapping[str, str] | None = None) -> Where:
        """Parse the file; BadInput with the line if it is not TOML."""
        import tomllib  # the command line has no TOML

        try:
            value = tomllib.loads(text)
        except (ValueError, RecursionError) as err:  # ValueError itself: a number of more digits than Python converts
            found = re.search(r"(.*) \(at line (\d+), column (\d+)\)\Z", str(err))
            what, place = (found[1], f":{found[2]}:{found[3]}") if found else (str(err), "")
            raise BadInput(f"{file.name}{place}: not TOML: {what}") from err
        if nests_deeper(value):
            raise BadInput(f"{file.name}: nested more than {DEPTH_MAX} deep")
        return cls(value, file, text, (), variables)

    def __truediv__(self, key: str | int) -> Where:
        inner = self._replace(value=self.value[key], keys=(*self.keys, key))
        if self.variables is None or type(inner.value) is not str or "${" not in inner.value:
            return inner
        return inner._replace(value=inner._substituted(inner.value, self.variables))

    def _substituted(self, text: str, variables: Mapping[str, str]) -> Substituted:
        def value(found: re.Match[str]) -> str:
            """Return what a ${…} stands for."""
            if found[0].startswith("$$"):
                return found[0][1:]
            name, default = found["name"], found["default"]
            if name is None:
                raise self.error(
                    f"{printable(found[0], 80)} is not a variable", "write ${NAME}, or $${ for the text ${"
                )
            if default is not None:
                return variables.get(name) or str(default)
            if name not in variables:
                raise self.error(f"${{{name}}} is not set", f"export it, or write ${{{name}:-DEFAULT}}")
            return variables[name]

        return Substituted(_VARIABLE.sub(value, text))

    @property
    def key(self) -> str:
        """The last key."""
        return str(self.keys[-1])

    def error(self, what: str, hint: str = "") -> BadInput:
        """The error that this value `what`; the file, line and column as compilers write them, for editors to jump to."""
        if self.options is not None:
            keys = [printable(key) for key in self.keys[2:]]
            known = self.options.get(".".join(keys[:2])) or " ".join((self.options.get(keys[0], keys[0]), *keys[1:]))
            return BadInput(f"{known}: {what}", hint)
        position = position_of(self.text, self.keys)
        place = ":{}:{}".format(*position) if position else ""
        return BadInput(f"{self.file.name}{place}: {printable('.'.join(map(str, self.keys)))}: {what}", hint)

    def unknown(self, known: Sequence[str]) -> BadInput:
        """Return the error for an unknown key, with the nearest known one."""
        near = difflib.get_close_matches(self.key, known, n=1)
        return self.error("unknown key", f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}")

    def known(self, names: Sequence[str]) -> None:
        """Raise BadInput if this table has a key that is not in `names`."""
        for key in self.table():
            if key not in names:
                raise (self / key).unknown(names)

    def kind(self) -> str:
        """Return the type of the value, for messages."""
        return _KINDS.get(str if isinstance(self.value, Substituted) else type(self.value), "a date")

    def _typed(self, type_: type) -> Any:
        if isinstance(self.value, Substituted):
            text = str(self.value)
            if type_ is int and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
                return int(text)
            if type_ is bool and text in ("true", "false"):
                return text == "true"
            if type_ is str:
                return text
        if type(self.value) is not type_:  # a bool is an int to isinstance
            is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
            hint = f'write "{self.value}"' if type_ is str and is_number and math.isfinite(self.value) else ""
            wanted = "a whole number" if type_ is int and is_number else _KINDS[type_]
            raise self.error(f"is {self.kind()}, expected {wanted}", hint)
        return self.value

    def table(self) -> Mapping[str, Any]:
        """Return the value as a table."""
        value: Mapping[str, Any] = self._typed(dict)
        for key in value:
            self.check_text(key)
        return value

    def items(self) -> list[Where]:
        """Return the array's values, each with its position."""
        return [self / number for number in range(len(self._typed(list)))]

    def string(self) -> str:
        """Return the value as a string."""
        value: str = self._typed(str)
        self.check_text(value)
        return value

    def check_text(self, text: str) -> None:
        """Check that `text` is valid Unicode: arguments of a command may not be."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(f"{printable(text, 80)} is not UTF-8 text") from None

    def boolean(self) -> bool:
        """Return the value as a boolean."""
        value: bool = self._typed(bool)
        return value

    def integer(self) -> int:
        """Return the value as an integer."""
        value: int = self._typed(int)
        return value

    def path(self) -> Path:
        """Return the path of a file, relative to the directory of images.toml."""
        text: str = self._typed(str)  # a file's name need not be text
        if not text or "\0" in text:
            raise self.error(f"{printable(text, 80)!r} is not a path")
        return (self.file.parent / text).absolute()

    def anchored(self, reference: Reference) -> Reference:
        """The reference with its path, where it has one, made absolute in the same way."""
        if reference.path is None:
            return reference
        return reference._replace(path=(self.file.parent / reference.path).absolute())


def position_of(text: str, keys: Keys) -> Position | None:
    """Return the position of `keys` in the TOML `text`, else of the nearest table above; None if there is none."""
    positions: dict[Keys, Position] = {}
    for path, position in _positions(text):
        positions.setdefault(path, position)
    while keys and keys not in positions:
        keys = keys[:-1]
    return positions.get(keys)


# What may hold a line's end or a bracket that is none, brackets, and line ends.
_TOKEN = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""(?!")|\'{3}.*?\'{3}(?!\')|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|[][{}\n]''', re.DOTALL
)
_BLANK = re.compile(r"\s*(#.*)?\Z")


def _positions(text: str) -> Iterator[tuple[Keys, Position]]:
    """Every key of a valid document and where it is."""
    import tomllib

    prefix: Keys = ()
    counts: dict[Keys, int] = {}  # of arrays of tables: the number of the last
    for statement, first in _statements(text):
        value = tomllib.loads(statement)
        header = statement.lstrip()
        if header.startswith("["):
            prefix = ()
            for path in _paths(value):  # a table's header makes the tables above it
                prefix = (*prefix, path[-1])
                yield prefix, _position(statement, first, path)
                prefix = (*prefix, counts[prefix]) if prefix in counts and not _is_last(value, path) else prefix
            if header.startswith("[["):
                counts[prefix] = counts.get(prefix, -1) + 1
                prefix = (*prefix, counts[prefix])
                yield prefix, _position(statement, first, path)
        else:
            for path in _paths(value):
                yield prefix + path, _position(statement, first, path)


def _statements(text: str) -> Iterator[tuple[str, int]]:
    """Each key and value, or header, of a valid document, and its first line: it ends with a line that leaves nothing open."""
    start, line, first, depth = 0, 1, 1, 0
    for found in _TOKEN.finditer(text + "\n"):
        token = found[0]
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
        line += token.count("\n")
        if token == "\n" and not depth:
            statement = text[start : found.end()]
            if not _BLANK.match(statement):
                yield statement, first
            start, first = found.end(), line


def _paths(value: Any) -> Iterator[Keys]:
    """Every way into a value, but into the empty tables of a header no further."""
    if isinstance(value, list) and value != [{}]:
        items: Iterator[tuple[str | int, Any]] = iter(enumerate(value))
    else:
        items = iter(value.items() if isinstance(value, dict) else ())
    for key, inner in items:
        yield (key,)
        for path in _paths(inner):
            yield (key, *path)


def _is_last(value: Any, path: Keys) -> bool:
    for key in path:
        value = value[key]
    return value in ({}, [{}])


def _position(statement: str, first: int, path: Keys) -> Position:
    """Return the position of the last name of `path` in a statement that begins in line `first`."""
    at = 0
    for name in path:
        if isinstance(name, str):
            found = re.search(rf"(?<![\w-])([\"']?){re.escape(name)}\1(?=\s*[=.\]])", statement[at:])
            at += found.start() if found else 0
    before = statement[:at]
    return first + before.count("\n"), at - (before.rfind("\n") + 1) + 1
