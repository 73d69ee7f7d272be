"""Locks of layers, so that of several processes one inflates, scans and compresses a layer, and the others use what it made.

A process holds the locks of the layers that it makes until its disk is kept, because only then others find the chunks.
Locks are taken in the order of diff IDs, so that no two processes wait for each other. The kernel frees those of a process
that was killed. Nothing depends on them but time: who waits too long makes the layer too.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from rootdisk.errors import Busy
from rootdisk.oci.documents import Digest
from rootdisk.system.locks import held


class LayerLocks:
    """The locks that this build holds, as files beside the indexes; a context manager. One thread uses it."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / "indexes"
        self._held: dict[Digest, contextlib.ExitStack] = {}

    def take(self, diff_id: Digest, timeout_s: float | None = None) -> None:
        """Wait until nobody else makes the layer, and keep others from making it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = contextlib.ExitStack()
        with contextlib.suppress(Busy):
            path = self._folder / f"{diff_id.hex}.lock"
            lock.enter_context(held(path, timeout_s=timeout_s, what=f"layer {diff_id.short}", doing="making a layer"))
            self._held[diff_id] = lock

    def release(self, diff_id: Digest) -> None:
        """Let others make the layer, or find that there is nothing to make."""
        lock = self._held.pop(diff_id, None)
        if lock is not None:
            lock.close()

    def __enter__(self) -> LayerLocks:
        return self

    def __exit__(self, *_: object) -> None:
        for diff_id in list(self._held):
            self.release(diff_id)
