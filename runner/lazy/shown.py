"""Show on a terminal how far a disk is fetched, as long as a sandbox is starting on it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from rootdisk.cli.progress import shown_progress
from runner.lazy.served import ServedDisk
from runner.store import filling

_EVERY_S = 0.25


@contextlib.contextmanager
def shown_fill(served: ServedDisk | None) -> Iterator[Callable[[], None]]:
    """Show the progress of a fill until the function that is yielded is called, or the block ends."""
    if served is None or not sys.stderr.isatty():
        yield lambda: None
        return
    ended = threading.Event()

    def show() -> None:
        """Ask the server again and again."""
        with shown_progress("starting; disk fetched") as progress:
            while progress is not None and not ended.wait(_EVERY_S):
                status = filling.status(served.store, served.source.digest)
                if status is not None:
                    progress(status.filled_bytes, status.data_bytes)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()

    def end() -> None:
        """Remove the line."""
        ended.set()
        thread.join()

    try:
        yield end
    finally:
        end()
