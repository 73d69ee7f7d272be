"""Threads that get chunks: from the partial file, from other disks of the store, else from the registry.

Each chunk is verified before it is written, by the code of a pull. What happens is reported to the main thread as events.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import zstandard

from rootdisk.artifact.format import Chunk
from rootdisk.errors import DigestMismatch, RootdiskError
from rootdisk.oci.documents import MANIFEST_MAX_BYTES, Descriptor
from rootdisk.oci.repository import Joined, Repository
from rootdisk.places import open_mirrored
from runner.lazy.agenda import FETCHERS, Agenda, Job
from runner.store.chunks import SYNC_BYTES, Part, plan, receive
from runner.store.fetch import fetch_rest
from runner.store.filling import DiskSource
from runner.store.partial import PartialDisk, write_error
from runner.store.possession import asked_with, keep_asked, served
from runner.store.store import Store


class Event(NamedTuple):
    """A report of a fetcher: chunks that are there, or why it could not get some."""

    chunks: tuple[Chunk, ...]
    is_fetched: bool = False
    error: RootdiskError | None = None


class Fetchers:
    """The threads, and what they share."""

    def __init__(
        self,
        store: Store,
        source: DiskSource,
        partial: PartialDisk,
        agenda: Agenda,
        is_wanted: Callable[[int], bool],
        wake: Callable[[], None],
    ) -> None:
        """`is_wanted` tells whether a guest waits for the chunk of a number; `wake` is called when there are events."""
        self._store, self._source, self._partial, self._agenda = store, source, partial, agenda
        self._is_wanted, self._wake = is_wanted, wake
        self.events: deque[Event] = deque()
        self.fetched_bytes = 0
        self.is_proven = False  # the repository has shown that it has the artifact
        self._has_shown_disk = False
        self._repository: Repository | None = None
        self._lock = threading.Lock()
        self._proving = threading.Lock()
        self._has_searched = threading.Event()
        self._unsynced = 0
        self._threads = [
            threading.Thread(target=self._run, args=(action,), name=action.__name__, daemon=True)
            for action in (self._begin, *[self._fetch] * FETCHERS)
        ]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all threads; requests are broken off."""
        self._agenda.end()
        with self._lock:
            repository = self._repository
        if repository is not None:
            repository.interrupt()
        self._has_searched.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if repository is not None:
            repository.close()

    def _run(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException:  # a mistake of ours: reads must not wait for a thread that is gone
            with contextlib.suppress(OSError):
                traceback.print_exc()
            os._exit(1)  # keepers start another server

    def _begin(self) -> None:
        self._partial.search()
        with self._proving:
            proof = self._proof()
            self._has_searched.set()
            self._show(proof)

    def _fetch(self) -> None:
        decompressor = zstandard.ZstdDecompressor()
        self._has_searched.wait()
        while (job := self._agenda.take()) is not None:
            self._attempt(job, lambda job=job: self._get(job, decompressor))  # type: ignore[misc]

    def _attempt(self, job: Job, action: Callable[[], None]) -> bool:
        """Do `action` for `job` and report how it went. Return whether it went well."""
        since = time.monotonic()
        error = self._error_of(action)
        if self._repository is not None and self._repository.serves_ranges is False:
            self._agenda.takes_all = True
        is_wrong = isinstance(error, DigestMismatch)
        self._agenda.over(
            job,
            failed=error is not None,
            is_wrong=is_wrong,
            is_wanted=self._is_wanted,
            took_s=time.monotonic() - since,
        )
        if error is not None:
            self._report(Event(job.chunks, error=error))
        return error is None

    def _error_of(self, action: Callable[[], None]) -> RootdiskError | None:
        try:
            action()
        except RootdiskError as err:
            return err
        except OSError as err:
            error = write_error(self._store, err, self._source.chunk_index.disk_size)
            error.__cause__ = err
            return error
        except Exception as err:  # a mistake of ours: guests must not wait for it without end
            with contextlib.suppress(OSError):
                traceback.print_exc()
            return RootdiskError(f"the disk's server failed: {type(err).__name__}: {err}")
        return None

    def _get(self, job: Job, decompressor: zstandard.ZstdDecompressor) -> None:
        missing = []
        for chunk in job.chunks:
            if self._partial.provide(chunk):
                self._done(chunk, is_fetched=False)
            else:
                missing.append(chunk)
        blob = self._blob() if missing else None
        for part in self._parts(missing):
            assert blob is not None
            for chunk, raw in receive(blob, part, decompressor, self._count):
                self._partial.write(chunk, raw)
                self._count(chunk.blob_length)
                self._done(chunk, is_fetched=True)
                self._sync(chunk.length)

    def _parts(self, missing: list[Chunk]) -> Iterator[Part]:
        """Yield the parts to request. Only zero chunks are in their gaps, so nothing is requested twice."""
        run: list[Chunk] = []
        for chunk in missing:
            if run and not self._agenda.is_zero_between(run[-1], chunk):
                yield from plan(run)
                run = []
            run.append(chunk)
        yield from plan(run)

    def prove(self) -> None:
        """Have the repository prove that it has the artifact, as possession.py asks, the disk by a random chunk. Then keep its name."""
        with self._proving:
            self._show(self._proof())

    def _proof(self) -> Job | None:
        """Return the job that proves that the repository has the disk; None if that was proven before."""
        source = self._source
        if source.digest.hex in served(self._store, source.reference, source.options):
            self.is_proven = True
        self._has_shown_disk |= self.is_proven or not self._agenda.data_bytes
        return None if self._has_shown_disk else self._agenda.reserve()

    def _show(self, job: Job | None) -> None:
        """Prove the disk, then the rest: the blobs that boot the disk and that were not needed to start it."""

        def fetch() -> None:
            """Fetch the chunk, also if it is there."""
            assert job is not None
            chunk = job.chunks[0]
            for part in plan([chunk]):
                for _, raw in receive(self._blob(), part, zstandard.ZstdDecompressor(), self._count):
                    self._partial.write(chunk, raw)
                    self._count(chunk.blob_length)
                    self._done(chunk, is_fetched=True)

        if job is not None:
            self._has_shown_disk = self._attempt(job, fetch)
        if self._has_shown_disk and (error := self._error_of(self._fetch_rest)) is not None:
            self._report(Event((), error=error))

    def _fetch_rest(self) -> None:
        store, source = self._store, self._source
        self._fetch_rest_of(source.manifest)
        # Who uses the disk from now on shows the rest itself (start.enter). Others may have asked for it before, by another name.
        self.is_proven = True
        for digest in asked_with(store, source.reference, source.options, source.digest):
            with contextlib.suppress(OSError):  # removed meanwhile
                self._fetch_rest_of(store.read_blob(digest, MANIFEST_MAX_BYTES))

    def _fetch_rest_of(self, manifest: bytes) -> None:
        store, reference, options = self._store, self._source.reference, self._source.options
        known = served(store, reference, options)
        fetch_rest(store, self._blob().repository, manifest, known, self._calmly)
        keep_asked(store, reference, options, manifest)

    def _calmly(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the bytes of a blob that no guest reads, so that it makes way for what guests read."""
        repository = self._blob().repository
        start = 0
        while start < descriptor.size:
            size = self._agenda.await_calm()
            end = descriptor.size if repository.serves_ranges is False else min(start + size, descriptor.size)
            yield from repository.blob(descriptor, start, end)
            start = end

    def _blob(self) -> Joined:
        with self._lock:
            if self._repository is None:
                self._repository = open_mirrored(self._source.reference, self._source.options)
            return Joined(self._repository, self._source.blobs)

    def _count(self, requested_bytes: int) -> None:
        with self._lock:
            self.fetched_bytes += requested_bytes

    def _sync(self, written_bytes: int) -> None:
        """Sync while more arrives, as a pull does."""
        with self._lock:
            self._unsynced += written_bytes
            is_due = self._unsynced >= SYNC_BYTES
            if is_due:
                self._unsynced = 0
        if is_due:
            os.fdatasync(self._partial.fd)

    def _done(self, chunk: Chunk, *, is_fetched: bool) -> None:
        self._agenda.done(chunk, is_fetched=is_fetched)
        self._report(Event((chunk,), is_fetched))

    def _report(self, event: Event) -> None:
        self.events.append(event)
        self._wake()
