"""Secrets in what a server answers, replaced by their placeholders. Pure.

A server may give a secret back as it is, or as base64, hexadecimal digits, a part of a URL, of JSON or of HTML. Every pattern
and its replacement have the same length, so that no length in an answer changes. What a server makes of a secret in another
way, for example encrypted or in parts, is not recognized.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

_END_MIN = 8  # bytes of a secret, cut off by the end of an answer, that are replaced too


class Echoes:
    """The patterns of some secrets."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """`pairs` are secrets and their placeholders, of the same length each."""
        self.replacements = {
            pattern: replacement for value, shown in pairs for pattern, replacement in _forms(value, shown)
        }
        longest_first = sorted(self.replacements, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first)))

    def hide(self, data: bytes) -> bytes:
        """Return `data`, which is whole, with placeholders."""
        return self._pattern.sub(lambda match: self.replacements[match[0]], data) if self._is_in(data) else data

    def _is_in(self, data: bytes) -> bool:
        """Return whether any pattern is there: far quicker than to try them all at each place, as `re` does."""
        return any(pattern in data for pattern in self.replacements)

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """Return `data` with placeholders, and its end, which may be the beginning of a secret.

        A secret that is there whole may be the beginning of a longer one, or lie within it: what begins first counts, and of
        those the longest.
        """
        end = 0
        cut = self._open_at(data, end)
        for match in self._pattern.finditer(data) if self._is_in(data) else ():
            if cut <= match.start():
                break
            end = match.end()
            if cut < end:
                cut = self._open_at(data, end)
        return self.hide(data[:cut]), data[cut:]

    def _open_at(self, data: bytes, start: int) -> int:
        """Return the first place from `start` on where `data` may end within a pattern; its length if there is none."""
        cut = len(data)
        for pattern in self.replacements:
            at = data.find(pattern[:1], max(start, len(data) - len(pattern) + 1))
            while 0 <= at < cut:
                if pattern.startswith(data[at:]):
                    cut = at
                at = data.find(pattern[:1], at + 1)
        return cut

    def hide_end(self, data: bytes) -> bytes:
        """Return what `split` has left, if nothing follows."""
        if data in self.replacements:
            return self.replacements[data]
        for pattern, replacement in self.replacements.items():
            if len(data) >= _END_MIN and pattern.startswith(data):
                return replacement[: len(data)]
        return data


class Hidden:
    """A body that comes in pieces."""

    def __init__(self, echoes: Echoes) -> None:
        self._echoes = echoes
        self._left = b""

    def take(self, data: bytes) -> bytes:
        """Return what of the body can be passed on."""
        out, self._left = self._echoes.split(self._left + data)
        return out

    def end(self) -> bytes:
        """Return the rest."""
        left, self._left = self._left, b""
        return self._echoes.hide_end(left)


def _forms(value: str, shown: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield forms of a secret, each with what stands in its place."""
    raw, placeholder = value.encode(), shown.encode()
    yield raw, placeholder
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):  # bytes in front of it, of the same three that make four characters
            yield _inner(encode, raw, before), _inner(encode, placeholder, before)
    yield raw.hex().encode(), placeholder.hex().encode()
    yield raw.hex().upper().encode(), placeholder.hex().upper().encode()
    escaped = (
        quote(value, safe=""),
        re.sub("%..", lambda match: match[0].lower(), quote(value, safe="")),
        quote(value),
        json.dumps(value)[1:-1],
        json.dumps(value)[1:-1].replace("/", "\\/"),
        html.escape(value),
        html.escape(value, quote=False),
    )
    for text in escaped:
        if text != value:
            yield text.encode(), (shown * len(text))[: len(text)].encode()


def _inner(encode: object, data: bytes, before: int) -> bytes:
    """Return the characters of base64 that `data` alone decides."""
    assert callable(encode)
    encoded: bytes = encode(bytes(before) + data)
    return encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
