"""JSON from outside, parsed strictly, and its fields read one by one with bounds; errors name the field.

One text has one meaning: UTF-8 only, no key twice, no NaN, no lone surrogate, no number that another reader would round.
What a document may cost is bounded before it is parsed: its bytes, its values, their depth.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rootdisk.errors import BadInput
from rootdisk.text import printable

VALUES_MAX = 400_000  # a manifest of 4 MiB has some 150,000; each costs up to 250 bytes of memory
DEPTH_MAX = 64
TEXT_MAX = 4096
INTEGER_MAX = (1 << 63) - 1
_NO_NUL = r"[^\0]*"


def parse_value(raw: bytes, what: str, max_bytes: int) -> Any:
    """The JSON value in `raw`; BadInput names `what` if it is too large, too deep or ambiguous."""
    if len(raw) > max_bytes:
        raise BadInput(f"{what}: {len(raw)} bytes are more than the {max_bytes} allowed")
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > VALUES_MAX:
        raise BadInput(f"{what}: more than the {VALUES_MAX} values allowed")
    try:
        text = raw.decode()
        value = json.loads(
            text, parse_int=_integer, parse_float=_fraction, parse_constant=_constant, object_pairs_hook=_object
        )
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{what}: not JSON", "a string has half of a surrogate pair") from None
    except (ValueError, RecursionError) as err:
        raise BadInput(f"{what}: not JSON", printable(err, 160)) from err
    _check_depth(value, what)
    return value


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else INTEGER_MAX + 1
    if not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise ValueError(f"a number of {len(text)} digits")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number that can be written again")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {printable(twice, 80)!r} is there twice")
    return value


def _check_depth(value: Any, what: str) -> None:
    """Comparing or writing a deep value would end in a RecursionError somewhere else."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [item for outer in level for item in _inside(outer) if isinstance(item, dict | list)]
        if not level:
            return
    raise BadInput(f"{what}: nested more than {DEPTH_MAX} deep")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


class Fields(NamedTuple):
    """One JSON object, and what to call it."""

    value: Mapping[str, Any]
    what: str
    hint: str = ""

    @classmethod
    def of(cls, value: object, what: str, hint: str = "") -> Fields:
        if not isinstance(value, dict):
            raise BadInput(f"{what}: not a JSON object", hint)
        return cls(value, what, hint)

    def wrong(self, key: str, why: str) -> BadInput:
        return BadInput(f"{self.what}: {key}: {why}", self.hint)

    def inner(self, key: str) -> Fields:
        return Fields.of(self.value.get(key), f"{self.what}: {key}", self.hint)

    def items(self, key: str, count_max: int, default: list[Any] | None = None) -> list[Any]:
        """`default` if the key is not there, or null."""
        items = self.value.get(key)
        if items is None and default is not None:
            return default
        if not isinstance(items, list):
            raise self.wrong(key, "not a list")
        if len(items) > count_max:
            raise self.wrong(key, f"{len(items)} entries are more than the {count_max} allowed")
        return items

    def objects(self, key: str, count_max: int, default: list[Any] | None = None) -> Iterator[Fields]:
        for number, item in enumerate(self.items(key, count_max, default), 1):
            yield Fields.of(item, f"{self.what}: {key} {number}", self.hint)

    def integer(self, key: str, low: int, high: int) -> int:
        return self._integer(key, self.value.get(key), low, high)

    def integers(self, key: str, low: int, high: int, count_max: int) -> tuple[int, ...]:
        return tuple(self._integer(key, item, low, high) for item in self.items(key, count_max, []))

    def _integer(self, key: str, value: object, low: int, high: int) -> int:
        # True is an int to Python, and 1.0 is equal to 1.
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"{printable(repr(value), 40)} is not a whole number from {low} to {high}")
        return value

    def text(self, key: str, default: str | None = None, *, limit: int = TEXT_MAX, pattern: str = _NO_NUL) -> str:
        """`default` if the key is not there, null or empty; all of the text has to match `pattern`."""
        value = self.value.get(key)
        if default is not None and value in (None, ""):
            return default
        return self._text(key, value, limit, pattern)

    def texts(self, key: str, count_max: int, *, limit: int = TEXT_MAX) -> tuple[str, ...]:
        return tuple(self._text(key, item, limit, _NO_NUL) for item in self.items(key, count_max, []))

    def strings(self, key: str, count_max: int, *, limit: int = TEXT_MAX) -> dict[str, str]:
        """An object whose values are strings; {} if it is not there. A null in it is an empty string, as in Go."""
        value = self.value.get(key)
        if value is None:
            return {}
        items = self.inner(key).value
        if len(items) > count_max:
            raise self.wrong(key, f"{len(items)} entries are more than the {count_max} allowed")
        return {
            self._text(key, name, limit, _NO_NUL): self._text(key, "" if item is None else item, limit, _NO_NUL)
            for name, item in items.items()
        }

    def _text(self, key: str, value: object, limit: int, pattern: str) -> str:
        if not isinstance(value, str):
            raise self.wrong(key, "missing" if value is None else "not a string")
        if len(value) > limit:
            raise self.wrong(key, f"{len(value)} characters are more than the {limit} allowed")
        if not re.fullmatch(pattern, value, re.DOTALL):
            raise self.wrong(key, f"{printable(value, 80)!r} is not valid")
        return value
