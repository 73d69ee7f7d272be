"""A disk that is not complete yet, as a process uses it: the connection to its server, which gets what is read."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from rootdisk.durable import open_file
from rootdisk.errors import RegistryError, RootdiskError
from runner.lazy import start
from runner.store import filling
from runner.store.filling import DiskSource
from runner.store.store import Store


class ServedDisk:
    """The bytes of a disk; see runner/disk/base.py."""

    def __init__(self, store: Store, source: DiskSource) -> None:
        """Connect to the server of the disk of `source`, or start it.

        Raises:
            RootdiskError: The disk has no server, or the disk may not be used.
        """
        self.source = source
        self.size = source.chunk_index.disk_size
        self.server = start.enter(store, source)
        self.record: int | None = None  # a file for the reads of the machine
        self.store = store

    def record_reads(self, record: int) -> None:
        """Have the reads of the machine written to the file `record`, and nothing fetched but what is read."""
        self.record = record
        with contextlib.suppress(OSError):  # the next server is told by the keeper
            filling.send(self.server, {"do": "attach", "records": True})

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer at the end of the disk.

        Raises:
            RootdiskError: They cannot be fetched.
        """
        count = min(length, self.size - offset)
        if count <= 0:
            return b""
        try:
            filling.send(self.server, {"do": "need", "offset": offset, "length": count})
            while (answer := self._answer()) is not None:
                if answer[0]["is"] == "there":
                    return self._read(count, offset)
                if answer[0]["is"] == "failed":
                    raise RegistryError(str(answer[0]["error"]), str(answer[0]["hint"]))
        except (OSError, KeyError) as err:
            raise RootdiskError(f"the server of the disk does not answer: {err}") from err
        raise RootdiskError("the server of the disk has ended", "try again")

    def _answer(self) -> tuple[dict[str, Any], list[int]] | None:
        """Wait for what the server says; Busy if it hangs. It may take long to get a part of the disk, or to say that it cannot."""
        self.server.settimeout(filling.ANSWER_S)
        while True:
            try:
                return filling.receive(self.server)
            except TimeoutError:
                if isinstance(filling.look(self.store, self.source.digest), filling.Silent):
                    raise filling.silence(self.store, self.source.digest) from None

    def _read(self, count: int, offset: int) -> bytes:
        try:
            fd = open_file(self.store.partial(self.source.digest))
        except FileNotFoundError:  # it has just got its name
            fd = open_file(self.store.disk(self.source.digest))
        try:
            return os.pread(fd, count, offset)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close what this process has open."""
        self.server.close()
        if self.record is not None:
            os.close(self.record)

    @property
    def fds(self) -> list[int]:
        """The descriptors that a keeper needs."""
        return [self.server.fileno()] + ([self.record] if self.record is not None else [])
