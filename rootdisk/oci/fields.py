"""Strict parsing of untrusted JSON, and bounded access to its fields; errors name the field.

A document has exactly one meaning: UTF-8 only, no duplicate keys (but in an image's config), no NaN, no lone surrogates, no
numbers that another reader would round. The cost is bounded before parsing: bytes, number of values, depth.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rootdisk.errors import BadInput
from rootdisk.text import printable

VALUES_MAX = 400_000  # a manifest of 4 MiB has about 150,000; each takes up to 250 bytes of memory
DEPTH_MAX = 64
TEXT_MAX = 4096
INTEGER_MAX = (1 << 63) - 1
NOT_KNOWN = "not a field that is known here"
_NO_NUL = r"[^\0]*"


def parse_value(raw: bytes, what: str, max_bytes: int, doubled: Callable[[str], None] | None = None) -> Any:
    """Parse a JSON value of at most `max_bytes`. Errors name it `what`.

    With `doubled` a key may stand in an object more than once, as for Go: the last value counts, objects are merged, and
    `doubled` is told the key.

    Raises:
        BadInput: It is too large, too deeply nested or ambiguous.
    """
    if len(raw) > max_bytes:
        raise BadInput(f"{what}: {len(raw)} bytes are more than the {max_bytes} allowed")
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > VALUES_MAX:
        raise BadInput(f"{what}: more than the {VALUES_MAX} values allowed")
    try:
        text = raw.decode()
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_fraction,
            parse_constant=_constant,
            object_pairs_hook=_object if doubled is None else lambda pairs: _merged(pairs, doubled),
        )
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{what}: not JSON", "a string contains half of a surrogate pair") from None
    except RecursionError:
        raise BadInput(f"{what}: nested more than {DEPTH_MAX} deep") from None
    except ValueError as err:
        raise BadInput(f"{what}: not JSON", printable(err, 160)) from err
    if nests_deeper(value):
        raise BadInput(f"{what}: nested more than {DEPTH_MAX} deep")
    return value


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else INTEGER_MAX + 1
    if not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise ValueError(f"a number of {len(text)} digits")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is out of range")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {printable(twice, 80)!r}")
    return value


def _merged(pairs: list[tuple[str, Any]], doubled: Callable[[str], None]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            doubled(key)
        value[key] = _both(value.get(key), item)
    return value


def _both(before: Any, after: Any) -> Any:
    """Return `after`; if both are objects, `before` with all of `after` added."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    for key, item in after.items():
        before[key] = _both(before.get(key), item)
    return before


def nests_deeper(value: Any) -> bool:
    """Return whether objects or lists nest deeper than DEPTH_MAX: comparing or encoding them would end in a RecursionError."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [item for outer in level for item in _inside(outer) if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64 as docker and podman read it: line ends do not count. ValueError if it is not base64."""
    from base64 import b64decode  # few documents have some

    return b64decode(text.replace("\r", "").replace("\n", ""), validate=True)


class Fields(NamedTuple):
    """A JSON object with a name for messages."""

    value: Mapping[str, Any]
    what: str
    hint: str = ""

    @classmethod
    def of(cls, value: object, what: str, hint: str = "") -> Fields:
        """Wrap `value`.

        Raises:
            BadInput: `value` is not an object.
        """
        if not isinstance(value, dict):
            raise BadInput(f"{what}: not a JSON object", hint)
        return cls(value, what, hint)

    def wrong(self, key: str, why: str) -> BadInput:
        """Return the error for an invalid field."""
        return BadInput(f"{self.what}: {key}: {why}", self.hint)

    def only(self, known: Collection[str], why: str) -> None:
        """Refuse a field that is not among `known`, because it could be the one that matters.

        Raises:
            BadInput: There is one; the message ends with `why`.
        """
        for key in self.value:
            if key not in known:
                raise self.wrong(printable(key, 80), why)

    def inner(self, key: str) -> Fields:
        """Return the object at `key`."""
        return Fields.of(self.value.get(key), f"{self.what}: {key}", self.hint)

    def items(self, key: str, count_max: int, default: list[Any] | None = None) -> list[Any]:
        """Return the list at `key`; `default`, if given, if the key is missing or null."""
        items = self.value.get(key)
        if items is None and default is not None:
            return default
        if not isinstance(items, list):
            raise self.wrong(key, "not a list")
        if len(items) > count_max:
            raise self.wrong(key, f"{len(items)} entries are more than the {count_max} allowed")
        return items

    def objects(self, key: str, count_max: int, default: list[Any] | None = None) -> Iterator[Fields]:
        """Yield the objects of the list at `key`."""
        for number, item in enumerate(self.items(key, count_max, default), 1):
            yield Fields.of(item, f"{self.what}: {key} {number}", self.hint)

    def integer(self, key: str, low: int, high: int) -> int:
        """Return the integer at `key`, from `low` to `high`."""
        return self._integer(key, self.value.get(key), low, high)

    def integers(self, key: str, low: int, high: int, count_max: int) -> tuple[int, ...]:
        """Return the list of integers at `key`, each from `low` to `high`; () if it is missing."""
        return tuple(self._integer(key, item, low, high) for item in self.items(key, count_max, []))

    def _integer(self, key: str, value: object, low: int, high: int) -> int:
        # In Python True is an int, and 1.0 equals 1.
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"{printable(repr(value), 40)} is not a whole number from {low} to {high}")
        return value

    def text(self, key: str, default: str | None = None, *, limit: int = TEXT_MAX, pattern: str = _NO_NUL) -> str:
        """Return the string at `key`, which must match `pattern`; `default`, if given, if it is missing, null or empty."""
        value = self.value.get(key)
        if default is not None and value in (None, ""):
            return default
        return self._text(key, value, limit, pattern)

    def texts(self, key: str, count_max: int, *, limit: int = TEXT_MAX) -> tuple[str, ...]:
        """Return the list of strings at `key`; () if it is missing."""
        return tuple(self._text(key, item, limit, _NO_NUL) for item in self.items(key, count_max, []))

    def boolean(self, key: str) -> bool | None:
        """Return the boolean at `key`; None if it is missing."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "not true or false")
        return value

    def strings(self, key: str, count_max: int, *, limit: int = TEXT_MAX) -> dict[str, str]:
        """Return the object of strings at `key`; {} if it is missing. A null value becomes "", as in Go."""
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
