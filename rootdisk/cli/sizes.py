"""The one grammar of sizes, in options and in images.toml: 512m, 1.5g, 8GiB, 100000.

Docker's grammar for memory: a number, perhaps with a fraction, and a unit of 1024 (k, m, g, t or p, perhaps with b or ib
behind it, in any case, perhaps after one space); without a unit it means bytes.
"""

from __future__ import annotations

import re

from rootdisk.errors import BadInput

# Also a pattern of JSON Schema, in imagetool/config/images.schema.json.
PATTERN = r"[0-9]{1,15}(\.[0-9]{1,15})?( ?([kKmMgGtTpP]([iI]?[bB])?|[bB]))?"
HINT = "write a number and a unit, as 512m, 1.5g or 8GiB"
SIZE_MAX_BYTES = (1 << 63) - 1  # of a file
_UNITS = "kmgtp"


def parse_size(text: str) -> int:
    """Return the bytes that `text` means; part of a byte is left out. BadInput: it is not a size, or past a file's."""
    if not re.fullmatch(PATTERN, text):
        raise BadInput(f"{text!r:.40} is not a size", HINT)
    number = text.lower().rstrip(f"ib{_UNITS} ")
    unit = text.lower()[len(number) :].lstrip()[:1]
    whole, _, fraction = number.partition(".")
    shift = 10 * (_UNITS.find(unit) + 1) if unit else 0
    size: int = (int(whole + fraction) << shift) // 10 ** len(fraction)
    if size > SIZE_MAX_BYTES:
        raise BadInput(f"{text!r:.40} is past what a file can have", f"at most {SIZE_MAX_BYTES} bytes")
    return size


def size_text(size: int) -> str:
    """Return `size` bytes for a message: whole MiB as parse_size() takes them, in the largest unit that divides them."""
    if not size or size % (1 << 20):
        return f"{size} bytes" if size != 1 else "1 byte"
    unit = 1
    while unit < 4 and not size % (1 << 10 * (unit + 2)):
        unit += 1
    return f"{size >> 10 * (unit + 1)}{'KMGTP'[unit]}iB"
