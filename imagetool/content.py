"""A blob's bytes: a file, or a function that gives them from the start each time it is called, as an upload may be sent twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rootdisk.errors import RootdiskError

Content = Path | Callable[[], Iterator[bytes]]

PIECE_BYTES = 1 << 20


def pieces(content: Content) -> Iterator[bytes]:
    """The bytes of `content`, from the start."""
    if not isinstance(content, Path):
        yield from content()
        return
    try:
        with content.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
    except OSError as err:  # not to be taken for the network's
        raise RootdiskError(f"{content}: {err.strerror}") from err
