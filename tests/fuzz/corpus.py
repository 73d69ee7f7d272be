"""The inputs that are kept: corpus/TARGET/ has texts as they are, and files NAME.hex with an input a line.

`reached.hex` are inputs that reach far into a parser; each other file is named for what it once found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")


def kept(target: str) -> dict[str, bytes]:
    """Inputs by name."""
    return dict(_kept(target))


def _kept(target: str) -> Iterator[tuple[str, bytes]]:
    folder = FOLDER / target
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix != ".hex":
            yield path.name, path.read_bytes()
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line and not line.startswith("#"):
                yield f"{path.name}:{number}", bytes.fromhex(line)
