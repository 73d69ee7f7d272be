"""Reference in, verified disk in the store out.

The index comes first; then only the frames whose chunks are nowhere on this host. Frames are decompressed as they
arrive, each chunk's sha256 is compared, holes stay holes; the compressed blob is never kept. A killed fetch goes on
where it was: what the partial file holds is verified and used.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runner.artifact import ArtifactConfig, ArtifactManifest, Chunk, ChunkIndex
from runner.errors import DigestMismatch, RootdiskError
from runner.files import atomic_write, fsync_dir
from runner.oci import Digest, Manifest, Platform
from runner.reference import Reference
from runner.repository import Joined, RegistryOptions, Repository, open_repository, read_blob, resolve_manifest
from runner.store import Store

INDEX_MAX_BYTES = 256 << 20
CONFIG_MAX_BYTES = 4 << 20
GAP_BYTES = 512 << 10  # a gap up to this is fetched and thrown away: cheaper than another request
THREADS = 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Local:
    """An artifact on this host. Bytes: `fetched` of the blob, `reused` and `holes` of the disk; 0 where it was there."""

    digest: Digest
    config: ArtifactConfig
    disk: Path
    kernel: Path | None
    initramfs: Path | None
    fetched: int = 0
    reused: int = 0
    holes: int = 0


def pull(
    store: Store, reference: Reference, options: RegistryOptions, platform: Platform, progress: Progress | None = None
) -> Local:
    """The artifact that `reference` names, in `store`."""
    repository = open_repository(reference, options)
    try:
        descriptor, raw = resolve_manifest(repository, reference, platform)
        roles = ArtifactManifest.of(Manifest.parse(raw))
        config = ArtifactConfig.parse(store.blob(repository, roles.config).read_bytes())
        if config.platform != platform:
            raise RootdiskError(f"{reference} is for {config.platform}", f"this machine runs {platform}: --platform")
        disk = store.disk(config.disk_digest)
        counts = (0, 0, 0)
        if not disk.exists():
            with store.lock(config.disk_digest):
                if not disk.exists():
                    counts = _fetch_disk(store, repository, roles, config, progress)
        return Local(
            descriptor.digest,
            config,
            disk,
            store.blob(repository, roles.kernel) if roles.kernel else None,
            store.blob(repository, roles.initramfs) if roles.initramfs else None,
            *counts,
        )
    finally:
        repository.close()


def _fetch_disk(
    store: Store, repository: Repository, roles: ArtifactManifest, config: ArtifactConfig, progress: Progress | None
) -> tuple[int, int, int]:
    """Make the disk; bytes fetched, reused, holes."""
    raw = read_blob(repository, roles.chunks, INDEX_MAX_BYTES)
    index = ChunkIndex.parse(raw)
    if index.disk_digest() != config.disk_digest or index.disk_size != config.disk_size:
        raise DigestMismatch("the chunk index is not that of the disk in the config", "the artifact is damaged")
    blob = Joined(repository, roles.disk)
    if index.blob_end > blob.size:
        raise DigestMismatch("the chunk index reaches past the disk's blobs", "the artifact is damaged")
    path = store.disk(config.disk_digest)
    partial = path.with_suffix(".partial")
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, index.disk_size)
        data = [chunk for chunk in index.chunks if not chunk.zero]
        missing = [chunk for chunk in data if not _holds(fd, chunk)] if os.fstat(fd).st_blocks else data
        kept = _reuse(store, fd, missing)
        wanted = [chunk for chunk in missing if chunk.sha256 not in kept]
        fetched = _fetch(blob, wanted, fd, progress)
        os.fsync(fd)
        os.fchmod(fd, 0o400)
    except OSError as err:
        raise RootdiskError(f"store {store.root}: {err.strerror}", "is there room? runner prune") from err
    finally:
        os.close(fd)
    atomic_write(store.index(config.disk_digest), raw)
    os.rename(partial, path)
    fsync_dir(path.parent)
    holes = sum(chunk.length for chunk in index.chunks if chunk.zero)
    reused = sum(chunk.length for chunk in data) - sum(chunk.length for chunk in wanted)
    return fetched, reused, holes


def _holds(fd: int, chunk: Chunk) -> bool:
    return hashlib.sha256(os.pread(fd, chunk.length, chunk.offset)).digest() == chunk.sha256


def _reuse(store: Store, fd: int, missing: list[Chunk]) -> set[bytes]:
    """Copy what other disks of the store have, verified; the sha256s copied."""
    places: dict[bytes, tuple[Path, Chunk]] = {}
    for path, index in store.indexes():
        places.update((chunk.sha256, (path, chunk)) for chunk in index.chunks if not chunk.zero)
    copied: set[bytes] = set()
    for chunk in missing:
        place = places.get(chunk.sha256)
        if place is None or place[1].length != chunk.length:
            continue
        with place[0].open("rb") as source:
            data = os.pread(source.fileno(), chunk.length, place[1].offset)
        if hashlib.sha256(data).digest() == chunk.sha256:
            _write(fd, data, chunk.offset)
            copied.add(chunk.sha256)
    return copied


def _fetch(blob: Joined, wanted: list[Chunk], fd: int, progress: Progress | None) -> int:
    """Fetch, decompress, verify and write the chunks; bytes asked of the blob."""
    import zstandard

    total = sum(chunk.blob_length for chunk in wanted)
    done = fetched = 0

    def land(chunk: Chunk, frame: bytes) -> int:
        try:
            raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=chunk.length)
        except zstandard.ZstdError as err:
            raise DigestMismatch(
                f"chunk at {chunk.offset}: damaged frame", "fetch again, or ask who published it"
            ) from err
        if len(raw) != chunk.length or hashlib.sha256(raw).digest() != chunk.sha256:
            raise DigestMismatch(f"chunk at {chunk.offset}: not the bytes of the index", "fetch again")
        _write(fd, raw, chunk.offset)
        return chunk.blob_length

    waiting: deque[Future[int]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for part in _ranges(wanted):
                start, end = part[0].blob_offset, part[-1].blob_offset + part[-1].blob_length
                fetched += end - start
                for chunk, frame in _frames(blob.read(start, end), start, part):
                    waiting.append(pool.submit(land, chunk, frame))
                    if len(waiting) >= 4 * THREADS:
                        done += waiting.popleft().result()
                        if progress is not None:
                            progress(done, total)
            for future in waiting:
                future.result()
        finally:
            for future in waiting:
                future.cancel()
    return fetched


def _ranges(wanted: list[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks whose frames lie near each other, together."""
    part: list[Chunk] = []
    for chunk in wanted:
        if part and chunk.blob_offset - (part[-1].blob_offset + part[-1].blob_length) > GAP_BYTES:
            yield part
            part = []
        part.append(chunk)
    if part:
        yield part


def _frames(pieces: Iterator[bytes], start: int, chunks: list[Chunk]) -> Iterator[tuple[Chunk, bytes]]:
    """Cut the bytes from `start` on into the chunks' frames."""
    buffer = bytearray()
    at = start  # of the buffer's first byte in the blob
    for chunk in chunks:
        end = chunk.blob_offset + chunk.blob_length
        while at + len(buffer) < end:
            piece = next(pieces, None)
            if piece is None:
                raise DigestMismatch("the disk blob ends early", "fetch again")
            buffer += piece
        yield chunk, bytes(buffer[chunk.blob_offset - at : end - at])
        del buffer[: end - at]
        at = end


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
