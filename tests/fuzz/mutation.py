"""Changes by chance: for short runs whose inputs are always the same, and for machines without a fuzzer that sees coverage."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_EDGES = (0, 1, 0x7F, 0xFF, 0x80, 0xFFFF, 0x7FFF, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000, 1 << 63, (1 << 64) - 1)
_NUMBER = re.compile(rb"\d+")
_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"9" * 25, b"9" * 5000, b"00", b"1.5", b"0x10", b"\xc2\xb2", b"4294967296")
_TEXT = (b"\0", b"\n", b"\r\n", b"\x1b[2J", b"\\", b'"', b"\xff", b"\xed\xa0\x80", b"\\ud800", b"..", b"/", b"@", b":", b"%00", b"{", b"[" * 3000)  # fmt: skip


def mutated(chance: random.Random, seeds: Sequence[bytes], words: Sequence[bytes], max_bytes: int) -> bytes:
    """One of `seeds` with a few changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 12))):
        _change(chance, data, seeds, words)
    return bytes(data[:max_bytes])


def _change(chance: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    size = min(chance.choice((1, 1, 2, 4, 16, 64, 512)), len(data) - at)
    match chance.randrange(10):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(data):
            data[at] = chance.randrange(256)
        case 2:
            width = chance.choice((1, 2, 4, 8))
            value = (chance.choice(_EDGES) & ((1 << 8 * width) - 1)).to_bytes(width, chance.choice(("little", "big")))
            data[at : at + width] = value
        case 3:
            data[at:at] = data[chance.randrange(len(data) + 1) :][: max(size, 1)]
        case 4:
            del data[at : at + size]
        case 5:
            data[at : at + size] = bytes(size)
        case 6:
            found = list(_NUMBER.finditer(data))
            if found:
                one = chance.choice(found)
                data[one.start() : one.end()] = chance.choice(_NUMBERS)
        case 7:
            data[at : at + chance.choice((0, size))] = chance.choice(_TEXT)
        case 8 if words:
            data[at : at + chance.choice((0, size))] = chance.choice(words)
        case _:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[at : at + chance.choice((0, size))] = other[start : start + chance.choice((4, 32, 512))]
