"""Fetch the disk of an artifact into the store, verified.

First comes the chunk index, then only the frames of chunks that are not on this host yet. Frames are decompressed as they
arrive, the sha256 of each chunk is compared, and holes stay holes. The compressed blob is not stored. After a killed fetch,
the next one verifies and uses what the partial file contains.
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
from runner.store import limits
from runner.store.store import Store

THREADS = 2


class Counts(NamedTuple):
    """Bytes of a fetch: `fetched` counts the compressed blob, `reused` and `holes` count the disk."""

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
    """Fetch disk, kernel, initramfs and dm-verity tree if they are missing or damaged.

    For content that is in the store but not in `served` (hex digests), the repository must prove that it has it; see
    possession.py.

    Raises:
        RootdiskError: Something cannot be fetched or written.
    """
    from rootdisk.system.threads import pool_of

    with pool_of(1) as pool:
        boot = [
            pool.submit(store.blob, repository, role, again=role.digest.hex not in served)
            for role in (roles.kernel, roles.initramfs)
            if role
        ]
        if roles.verity and config.verity:
            again = config.verity.tree.hex not in served
            boot.append(pool.submit(store.verity_tree, repository, roles.verity, config.verity, again=again))
        try:
            counts = Counts(0, 0, 0)
            with store.making(config.disk_digest):
                # Another process may have fetched it meanwhile.
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
    """Make the repository prove that it has the disk in the store: its index, and a random chunk."""
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
    """Create the disk. A damaged one stays until it is replaced: sandboxes may use it, and its good chunks are reused."""
    raw, index = read_index(repository, roles, config)
    blob = Joined(repository, roles.disk)
    # Imported late: loading zstandard and threads takes longer than finding an existing disk.
    from runner.store.chunks import transfer

    path = store.disk(config.disk_digest)
    partial = path.with_suffix(".partial")
    data = [chunk for chunk in index.chunks if not chunk.zero]
    try:
        fd = _open_partial(partial)
        try:
            os.ftruncate(fd, index.disk_size)
            wanted = _missing(store, fd, data, path)
            limits.check(store.root, sum(chunk.length for chunk in wanted))
            fetched = transfer(blob, wanted, fd, progress)
            os.fsync(fd)
            atomic_write(store.index(config.disk_digest), raw)
            os.rename(partial, path)
            os.fchmod(fd, 0o400)  # not earlier: another fetch must be able to continue a partial file
        finally:
            os.close(fd)
        fsync_dir(path.parent)
        store.unmark(config.disk_digest.hex)
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            partial.unlink(missing_ok=True)  # free the space for other programs
        hint = advice(err, index.disk_size, store.root)
        raise RootdiskError(f"store {store.root}: {err.strerror}", hint) from err
    holes = sum(chunk.length for chunk in index.chunks if chunk.zero)
    reused = sum(chunk.length for chunk in data) - sum(chunk.length for chunk in wanted)
    return Counts(fetched, reused, holes)


def _open_partial(path: Path) -> int:
    """Open the partial file of a disk. Replace it if it cannot be used."""
    with contextlib.suppress(OSError):
        return open_file(path, os.O_RDWR | os.O_CREAT)
    path.unlink(missing_ok=True)
    return open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _missing(store: Store, fd: int, data: list[Chunk], damaged: Path) -> list[Chunk]:
    """Copy chunks from disks of the store to the partial file `fd`. Return those that are still missing.

    All present chunks have been verified. `damaged` is the previous file of this disk, which may not exist.
    """
    places = {chunk.sha256: (damaged, chunk) for chunk in data} if damaged.exists() else {}
    for path, index in store.indexes():
        places.update((chunk.sha256, (path, chunk)) for chunk in index.chunks if not chunk.zero)
    if not places and not os.fstat(fd).st_blocks:
        return data

    def provide(chunk: Chunk) -> bool:
        """Return whether the partial file has the chunk, if need be copied from another disk."""
        return _holds(fd, chunk) or (chunk.sha256 in places and _copy(*places[chunk.sha256], fd, chunk))

    from rootdisk.system.threads import pool_of

    with pool_of(THREADS) as pool:
        results = list(pool.map(provide, data))
    return [chunk for chunk, is_present in zip(data, results, strict=True) if not is_present]


def _holds(fd: int, chunk: Chunk) -> bool:
    """Return whether the partial file contains the chunk."""
    try:
        if os.lseek(fd, chunk.offset, os.SEEK_DATA) >= chunk.end:
            return False
    except OSError as err:
        if err.errno == errno.ENXIO:  # lseek(2): a hole up to the end
            return False
        raise
    return hashlib.sha256(os.pread(fd, chunk.length, chunk.offset)).digest() == chunk.sha256


def _copy(source: Path, source_chunk: Chunk, fd: int, chunk: Chunk) -> bool:
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
    write_at(fd, data, chunk.offset)
    return True
