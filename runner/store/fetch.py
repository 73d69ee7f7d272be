"""An artifact's blobs in, verified disk in the store out.

The index comes first; then only the frames whose chunks are nowhere on this host. Frames are decompressed as they
arrive, each chunk's sha256 is compared, holes stay holes; the compressed blob is never kept. A killed fetch goes on
where it was: what the partial file holds is verified and used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import ArtifactConfig, ArtifactManifest, Chunk
from rootdisk.artifact.published import read_index
from rootdisk.cli.progress import Progress
from rootdisk.durable import advice, atomic_write, fsync_dir, open_file, write_at
from rootdisk.errors import RootdiskError
from rootdisk.oci.repository import Joined, Repository
from runner.store.store import Store

THREADS = 2


class Counts(NamedTuple):
    """Bytes: `fetched` of the blob, `reused` and `holes` of the disk."""

    fetched: int
    reused: int
    holes: int


def fetch(
    store: Store,
    repository: Repository,
    roles: ArtifactManifest,
    config: ArtifactConfig,
    progress: Progress | None,
    served: Collection[str] = (),
) -> Counts:
    """Fetch the disk, and kernel and initramfs beside it, if they are not in the store yet, or damaged.

    What is there, but not among the hex digests `served`, the repository has to show it has: runner/store/possession.py.
    """
    from rootdisk.system.threads import pool_of

    with pool_of(1) as pool:
        boot = [
            pool.submit(store.blob, repository, role, again=role.digest.hex not in served)
            for role in (roles.kernel, roles.initramfs)
            if role
        ]
        try:
            counts = Counts(0, 0, 0)
            with store.making(config.disk_digest):
                # Else another process was quicker.
                if not store.disk(config.disk_digest).exists() or store.damage(config.disk_digest.hex):
                    counts = _fetch_disk(store, repository, roles, config, progress)
                elif config.disk_digest.hex not in served:
                    _check_disk(repository, roles, config)
            for future in boot:
                future.result()
        except BaseException:
            repository.interrupt()
            raise
    return counts


def _check_disk(repository: Repository, roles: ArtifactManifest, config: ArtifactConfig) -> None:
    """Have the repository show that it has the disk that the store has: its index, and a chunk that it cannot foresee."""
    _, index = read_index(repository, roles, config)
    data = [number for number, chunk in enumerate(index.chunks) if not chunk.zero]
    if not data:
        return
    from zstandard import ZstdDecompressor

    from rootdisk.artifact.zstd_frames import unpack

    chunk = index.chunks[data[int.from_bytes(os.urandom(8), "little") % len(data)]]
    frame = b"".join(Joined(repository, roles.disk).read(chunk.blob_offset, chunk.blob_end))
    unpack(chunk, frame, ZstdDecompressor())


def _fetch_disk(
    store: Store, repository: Repository, roles: ArtifactManifest, config: ArtifactConfig, progress: Progress | None
) -> Counts:
    """Make the disk. A damaged one stays until the new one takes its place: sandboxes may use it, and its good chunks serve."""
    raw, index = read_index(repository, roles, config)
    blob = Joined(repository, roles.disk)
    # With zstandard, and as the threads, it takes longer to load than to find out that the disk is here already.
    from runner.store.chunks import transfer

    path = store.disk(config.disk_digest)
    partial = path.with_suffix(".partial")
    data = [chunk for chunk in index.chunks if not chunk.zero]
    try:
        fd = _partial(partial)
        try:
            os.ftruncate(fd, index.disk_size)
            wanted = _not_here(store, fd, data, path)
            fetched = transfer(blob, wanted, fd, progress)
            os.fsync(fd)
            atomic_write(store.index(config.disk_digest), raw)
            os.rename(partial, path)
            os.fchmod(fd, 0o400)  # not before: a killed fetch could not go on with it
        finally:
            os.close(fd)
        fsync_dir(path.parent)
        store.unmark(config.disk_digest.hex)
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            partial.unlink(missing_ok=True)  # others need the room more than the next try needs it
        hint = advice(err, index.disk_size, store.root)
        raise RootdiskError(f"store {store.root}: {err.strerror}", hint) from err
    holes = sum(chunk.length for chunk in index.chunks if chunk.zero)
    reused = sum(chunk.length for chunk in data) - sum(chunk.length for chunk in wanted)
    return Counts(fetched, reused, holes)


def _partial(path: Path) -> int:
    """The open file of a disk that is being made; what is there and cannot be used is made again."""
    with contextlib.suppress(OSError):
        return open_file(path, os.O_RDWR | os.O_CREAT)
    path.unlink(missing_ok=True)
    return open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _not_here(store: Store, fd: int, data: list[Chunk], damaged: Path) -> list[Chunk]:
    """The chunks that neither the partial file nor, by then copied, a disk of the store has; all verified.

    `damaged` is the disk's own file from before, if there is one.
    """
    places = {chunk.sha256: (damaged, chunk) for chunk in data} if damaged.exists() else {}
    for path, index in store.indexes():
        places.update((chunk.sha256, (path, chunk)) for chunk in index.chunks if not chunk.zero)
    if not places and not os.fstat(fd).st_blocks:
        return data

    def here(chunk: Chunk) -> bool:
        return _holds(fd, chunk) or (chunk.sha256 in places and _copy(*places[chunk.sha256], fd, chunk))

    from rootdisk.system.threads import pool_of

    with pool_of(THREADS) as pool:
        found = list(pool.map(here, data))
    return [chunk for chunk, is_here in zip(data, found, strict=True) if not is_here]


def _holds(fd: int, chunk: Chunk) -> bool:
    try:
        if os.lseek(fd, chunk.offset, os.SEEK_DATA) >= chunk.end:
            return False
    except OSError as err:
        if err.errno == errno.ENXIO:  # lseek(2): a hole up to the end
            return False
        raise
    return hashlib.sha256(os.pread(fd, chunk.length, chunk.offset)).digest() == chunk.sha256


def _copy(source: Path, there: Chunk, fd: int, chunk: Chunk) -> bool:
    """Copy a chunk from where another disk has it; False where it does not have it any more."""
    try:
        source_fd = open_file(source)
        try:
            data = os.pread(source_fd, there.length, there.offset)
        finally:
            os.close(source_fd)
    except OSError:  # pruned meanwhile, or damaged
        return False
    if len(data) != chunk.length or hashlib.sha256(data).digest() != chunk.sha256:
        return False
    write_at(fd, data, chunk.offset)
    return True
