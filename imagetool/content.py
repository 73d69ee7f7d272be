"""A blob's bytes: bytes, a file, or a function that gives them from the start each time it is called.

An upload may be sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rootdisk.errors import RootdiskError

Content = bytes | Path | Callable[[], Iterator[bytes]]

PIECE_BYTES = 256 << 10  # stays in the processor's cache until it is hashed and sent


def pieces(content: Content) -> Iterator[bytes]:
    """Yield the bytes of `content`, from the start."""
    if isinstance(content, bytes):
        yield content
        return
    if not isinstance(content, Path):
        yield from content()
        return
    try:
        with content.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
    except OSError as err:  # not to be taken for the network's
        raise RootdiskError(f"{content}: {err.strerror}") from err
