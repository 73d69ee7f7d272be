"""The end of a fill: the lock for changing the disk, and its name when everything is there."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rootdisk.durable import open_file
from rootdisk.errors import Busy, RootdiskError
from runner.lazy.agenda import Agenda
from runner.store.filling import DiskSource
from runner.store.partial import PartialDisk, write_error
from runner.store.store import Store

_AGAIN_S = 1.0  # after the complete file could not get its name


def has_disk(store: Store, source: DiskSource) -> bool:
    """Return whether the complete disk is in the store."""
    return store.disk(source.digest).exists() and not store.damage(source.digest.hex)


class Completion:
    """Makes a partial file the disk, as the only process that changes it."""

    def __init__(
        self, store: Store, source: DiskSource, partial: PartialDisk, agenda: Agenda, wake: Callable[[], None]
    ) -> None:
        """`wake` is called when the file has its name, or could not get it."""
        self._store, self._source, self._partial, self._agenda, self._wake = store, source, partial, agenda, wake
        self._making = contextlib.ExitStack()
        self._thread: threading.Thread | None = None
        self._error: RootdiskError | None = None
        self._has_ended = False
        self.is_making = False  # we hold the lock for changing the disk
        self.is_complete = False

    @property
    def is_busy(self) -> bool:
        """Return whether the file is just getting its name."""
        return self._thread is not None

    def take(self) -> bool:
        """Get the lock. Return False if another process has it, which pulls the disk: then only reads are served."""
        doing = f"fetches disk {self._source.digest.short}"
        try:
            self._making.enter_context(self._store.unless_made(self._source.digest.hex, doing))
        except Busy:
            return False
        self.is_making = True
        if has_disk(self._store, self._source):
            self._replace(self._store.disk(self._source.digest), os.O_RDONLY)
            self.is_complete = True
        elif not self._partial.is_named:  # removed, because the disk was full
            self._replace(self._partial.path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._partial.fd, self._source.chunk_index.disk_size)
            self._agenda.forget()
        return True

    def _replace(self, path: Path, flags: int) -> None:
        """Open `path` instead of the partial file, under the same descriptor."""
        fd = open_file(path, flags)
        os.dup2(fd, self._partial.fd, inheritable=False)
        os.close(fd)

    def look(self, prove: Callable[[], None]) -> RootdiskError | None:
        """Give the complete file its name, in a thread because it is synced before. Return why that has failed.

        `prove` is called in the thread afterwards.
        """
        if self._thread is None and not self._agenda.left and self.is_making:
            self._thread = threading.Thread(target=self._finish, args=(prove,), daemon=True)
            self._thread.start()
        elif self._thread is not None and self._has_ended:
            self._thread.join()
            self._thread, self._has_ended = None, False
            error, self._error = self._error, None
            self.is_complete = error is None
            return error
        return None

    def _finish(self, prove: Callable[[], None]) -> None:
        try:
            self._partial.finish()
            prove()
        except OSError as err:
            self._error = write_error(self._store, err, self._source.chunk_index.disk_size)
            self._error.__cause__ = err
            time.sleep(_AGAIN_S)
        self._has_ended = True
        self._wake()

    def close(self) -> None:
        """Release the lock."""
        if self._thread is not None:
            self._thread.join()
        self._making.close()
        self.is_making = False
