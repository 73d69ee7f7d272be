"""The partial file of a disk: verified chunks at their places, holes elsewhere. When it is complete it becomes the disk.

No list says which chunks it has: a chunk is there if its bytes have the right sha256. So nothing has to be kept in
step with the file, and a process that is killed loses only the chunk that it was writing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from rootdisk.artifact.format import Chunk, ChunkIndex
from rootdisk.durable import advice, atomic_write, fsync_dir, is_named, open_file, write_at
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest
from runner.store.store import Store


class PartialDisk:
    """The open partial file of a disk. Threads may share it."""

    def __init__(self, store: Store, digest: Digest, index: ChunkIndex) -> None:
        """Open the file, which is created if missing and replaced if it cannot be used.

        Raises:
            OSError: It cannot be created, or have the size of the disk.
        """
        self._store, self._digest, self._index = store, digest, index
        self.path = store.partial(digest)
        self.fd = _open(self.path)
        self._places: dict[bytes, tuple[Path, Chunk]] | None = None
        try:
            os.ftruncate(self.fd, index.disk_size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    @property
    def is_named(self) -> bool:
        """Return whether the file still has its name."""
        return is_named(self.fd, self.path)

    def search(self) -> bool:
        """Find the chunks on other disks of the store, and on a damaged file of this one. Return whether any may be there."""
        wanted = {chunk.sha256 for chunk in self._index.chunks if not chunk.zero}
        damaged = self._store.disk(self._digest)
        places: dict[bytes, tuple[Path, Chunk]] = {}
        if damaged.exists():
            places = {chunk.sha256: (damaged, chunk) for chunk in self._index.chunks if not chunk.zero}
        for path, index in self._store.indexes():
            places.update(_wanted(path, index.chunks, wanted))
        self._places = places
        return bool(places) or bool(os.fstat(self.fd).st_blocks)

    def provide(self, chunk: Chunk) -> bool:
        """Return whether the file has the chunk, if need be copied from another disk. It has been verified then."""
        assert self._places is not None
        return self.has(chunk) or (chunk.sha256 in self._places and self._copy(*self._places[chunk.sha256], chunk))

    def has(self, chunk: Chunk) -> bool:
        """Return whether the file contains the chunk."""
        try:
            if os.lseek(self.fd, chunk.offset, os.SEEK_DATA) >= chunk.end:
                return False
        except OSError as err:
            if err.errno == errno.ENXIO:  # lseek(2): a hole up to the end
                return False
            raise
        return hashlib.sha256(os.pread(self.fd, chunk.length, chunk.offset)).digest() == chunk.sha256

    def write(self, chunk: Chunk, raw: bytes) -> None:
        """Write the verified bytes of a chunk."""
        write_at(self.fd, raw, chunk.offset)

    def _copy(self, source: Path, source_chunk: Chunk, chunk: Chunk) -> bool:
        """Copy a chunk from another disk. Return False if that disk no longer has it."""
        try:
            source_fd = open_file(source)
            try:
                data = os.pread(source_fd, source_chunk.length, source_chunk.offset)
            finally:
                os.close(source_fd)
        except OSError:  # the disk was pruned meanwhile, or is damaged
            return False
        if len(data) != chunk.length or hashlib.sha256(data).digest() != chunk.sha256:
            return False
        self.write(chunk, data)
        return True

    def finish(self) -> None:
        """Give the complete file its final name, and keep its chunk index beside it.

        Raises:
            OSError: It cannot be synced or renamed, or its name means another file by now.
        """
        path = self._store.disk(self._digest)
        os.fsync(self.fd)
        atomic_write(self._store.index(self._digest), self._index.pack())
        if not self.is_named:  # somebody has removed the store and made it again: that file is not verified
            raise OSError(errno.ESTALE, "the partial disk was removed or replaced", str(self.path))
        os.rename(self.path, path)
        os.fchmod(self.fd, 0o400)  # not earlier: another fetch must be able to continue a partial file
        fsync_dir(path.parent)
        self._store.unmark(self._digest.hex)


def write_error(store: Store, err: OSError, size: int) -> RootdiskError:
    """Return the error for a partial file of `size` bytes that cannot be written."""
    return RootdiskError(f"store {store.root}: {err.strerror}", advice(err, size, store.root))


def is_full(err: BaseException | None) -> bool:
    """Return whether an error says that the disk or the quota is full."""
    return isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT)


def _wanted(path: Path, chunks: Iterable[Chunk], wanted: set[bytes]) -> dict[bytes, tuple[Path, Chunk]]:
    return {chunk.sha256: (path, chunk) for chunk in chunks if not chunk.zero and chunk.sha256 in wanted}


def _open(path: Path) -> int:
    with contextlib.suppress(OSError):
        return open_file(path, os.O_RDWR | os.O_CREAT)
    path.unlink(missing_ok=True)
    return open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
