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
    """Yield the bytes of `content`, from the start.

    Raises:
        RootdiskError: It cannot be read. Who sends it must not take that for a failure of the network.
    """
    try:
        if isinstance(content, bytes):
            yield content
        elif isinstance(content, Path):
            with content.open("rb") as stream:
                while piece := stream.read(PIECE_BYTES):
                    yield piece
        else:
            yield from content()
    except OSError as err:
        where = f"{content}: " if isinstance(content, Path) else ""
        raise RootdiskError(f"{where}{err.strerror or err}") from err
