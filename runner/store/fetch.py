"""Fetch the disk of an artifact into the store, verified.

First come the config and, beside it, the chunk index; then only the frames of chunks that are not on this host yet. Kernel and
initramfs come meanwhile. Frames are decompressed as they arrive, the sha256 of each chunk is compared, and holes stay holes. The
compressed blob is not stored. After a killed fetch, the next one verifies and uses what the partial file contains.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rootdisk.artifact.format import ArtifactConfig, ArtifactManifest, Chunk, ChunkIndex
from rootdisk.artifact.published import checked_index, index_bytes
from rootdisk.cli.progress import Progress
from rootdisk.durable import advice, atomic_write
from rootdisk.errors import RegistryError, RootdiskError
from rootdisk.oci.documents import Descriptor
from rootdisk.oci.repository import Joined, Repository
from runner.store import limits
from runner.store.boot_blobs import BootBlob, boot_blobs, needed_to_start
from runner.store.store import Store

if TYPE_CHECKING:
    from rootdisk.system.threads import Running
    from runner.store.partial import PartialDisk

THREADS = 2

Read = Callable[[Descriptor], Iterator[bytes]]  # yields the bytes of a blob, not verified


class Counts(NamedTuple):
    """Bytes of a fetch: `fetched` counts the compressed blob, `reused` and `holes` count the disk."""

    fetched: int
    reused: int
    holes: int


@contextlib.contextmanager
def index_beside(repository: Repository, roles: ArtifactManifest) -> Iterator[list[bytes]]:
    """Fetch the chunk index while the block runs; it is in the yielded list when the block has ended.

    Raises:
        RootdiskError: As of `index_bytes`.
    """
    found: list[bytes] = []
    with _meanwhile(repository, [lambda: found.append(index_bytes(repository, roles)), _load]):
        yield found


def _load() -> None:
    """Load what chunks are decompressed and written with, while the answers that say which are on their way."""
    from runner.store import chunks, partial

    assert all((chunks, partial))


def fetch(
    store: Store,
    repository: Repository,
    roles: ArtifactManifest,
    config: ArtifactConfig,
    raw_index: bytes,
    progress: Progress | None,
    served: Callable[[], Collection[str]] = tuple,
    beside: Collection[BootBlob] = (),
) -> Counts:
    """Fetch the disk and the blobs that boot it, if they are missing or damaged, but not those `beside`.

    For content that is in the store but not in `served()` (hex digests), the repository must prove that it has it; see
    possession.py.

    Raises:
        RootdiskError: Something cannot be fetched or written.
    """
    index = checked_index(raw_index, roles, config)
    blob = Joined(repository, roles.disk)
    with contextlib.ExitStack() as until_made:
        counts = _join(store, config, progress, lambda: check_chunk(blob, index), until_made)
        known = served()  # a server that we have waited for may have fetched everything
        left = [needed for needed in boot_blobs(roles, config) if needed not in beside]
        with boot_files(store, repository, [left], known), store.making(config.disk_digest):
            until_made.close()
            # Another process may have fetched it meanwhile.
            if not store.disk(config.disk_digest).exists() or store.damage(config.disk_digest.hex):
                return _fetch_disk(store, repository, roles, config, index, progress)
            if config.disk_digest.hex not in known:
                check_chunk(blob, index)
    return counts


def fetch_boot(
    store: Store,
    repository: Repository,
    roles: ArtifactManifest,
    config: ArtifactConfig,
    raw_index: bytes,
    served: Collection[str] = (),
    read_vmlinux: Read | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Fetch what a machine needs to start on an incomplete disk: the kernel it starts, and initramfs. Keep the chunk index.

    `read_vmlinux` yields the vmlinux in place of the repository's own method; see `asked_early`. `meanwhile` is called while
    the kernel, the largest of these, is still on its way.

    Raises:
        RootdiskError: Something cannot be fetched or written.
    """
    blobs = [[blob] for blob in needed_to_start(roles, config)]
    with boot_files(store, repository, blobs, served, read_vmlinux):
        index = checked_index(raw_index, roles, config)
        path = store.partial(config.disk_digest)
        present = path.lstat().st_blocks * 512 if path.exists() else 0
        limits.check(store.root, max(0, sum(chunk.length for chunk in index.chunks if not chunk.zero) - present))
        try:
            atomic_write(store.index(config.disk_digest), raw_index)
        except OSError as err:
            raise RootdiskError(f"store {store.root}: {err.strerror}", advice(err, len(raw_index), store.root)) from err
        meanwhile()


@contextlib.contextmanager
def asked_early(repository: Repository, descriptor: Descriptor | None) -> Iterator[Read | None]:
    """Ask for a blob before the config is there, which says what is in it. Yield what reads the blob then, once.

    Until it is read, no more than its first bytes are taken. None is yielded if there is no `descriptor`.
    """
    if descriptor is None:
        yield None
        return
    pieces = repository.blob(descriptor)
    first: list[bytes] = []
    with _meanwhile(repository, [lambda: first.extend(itertools.islice(pieces, 1))]) as request:

        def read(_: Descriptor) -> Iterator[bytes]:
            """Yield the bytes of the blob, not verified."""
            request.wait()
            yield from first
            yield from pieces

        yield read


def fetch_rest(
    store: Store,
    repository: Repository,
    manifest: bytes,
    served: Collection[str],
    read: Read | None = None,
) -> None:
    """Fetch the blobs that boot a disk and that `fetch_boot` has left out, with `read` in place of the repository's own."""
    roles = ArtifactManifest.parse(manifest)
    config = store.read_config(roles.config.digest.hex)
    needed = needed_to_start(roles, config)
    for blob in boot_blobs(roles, config):
        if blob not in needed:
            store.boot_blob(repository, blob, again=blob.content.digest.hex not in served, read=read)


@contextlib.contextmanager
def boot_files(
    store: Store,
    repository: Repository,
    lists: Iterable[Iterable[BootBlob]],
    served: Collection[str],
    read_vmlinux: Read | None = None,
) -> Iterator[None]:
    """Fetch blobs that boot a disk while the block runs: the `lists` at once, those of each one after the other.

    Raises:
        RootdiskError: One cannot be fetched or written.
    """

    def fetch_all(blobs: Iterable[BootBlob]) -> None:
        """Fetch one after the other."""
        for blob in blobs:
            read = read_vmlinux if blob.role == "vmlinux" else None
            store.boot_blob(repository, blob, again=blob.content.digest.hex not in served, read=read)

    with _meanwhile(repository, [functools.partial(fetch_all, blobs) for blobs in lists]):
        yield


@contextlib.contextmanager
def _meanwhile(repository: Repository, actions: Sequence[Callable[[], None]]) -> Iterator[Running]:
    """Run `actions`, which read from `repository`, while the block runs. An error of one side ends the other."""
    from rootdisk.system.threads import running

    with running(actions) as threads:
        try:
            yield threads
            threads.wait()
        except BaseException:
            repository.interrupt()
            raise


def _join(
    store: Store,
    config: ArtifactConfig,
    progress: Progress | None,
    check: Callable[[], None],
    until_made: contextlib.ExitStack,
) -> Counts:
    """If a server fills the disk for sandboxes that use it, wait until it has done so, as quickly as it can.

    It may have another registry than ours, or other credentials. If it fails, and `check` shows that ours serves the disk, it has
    to end, and no other is started before `until_made` is closed.
    """
    if not (store.root / "lazy").exists():
        return Counts(0, 0, 0)
    from runner.store import filling

    try:
        status = filling.join(store, config.disk_digest, progress)
    except RegistryError:
        sock = filling.connect(store, config.disk_digest)
        if sock is not None:
            with sock:
                check()
                lock = filling.take_over(sock)
            if lock is None:
                raise
            until_made.callback(os.close, lock)
        return Counts(0, 0, 0)
    if status is None or not status.is_complete:
        return Counts(0, 0, 0)
    return Counts(status.fetched_bytes, 0, config.disk_size - status.data_bytes)


def check_chunk(blob: Joined, index: ChunkIndex, number: int | None = None) -> None:
    """Make a repository prove that it has a disk whose index it has: by the chunk `number`, or a random one.

    Raises:
        RootdiskError: It does not have the chunk.
    """
    data = [number for number, chunk in enumerate(index.chunks) if not chunk.zero]
    if not data:
        return
    from zstandard import ZstdDecompressor

    from rootdisk.artifact.zstd_frames import unpack

    if number is None:
        number = data[int.from_bytes(os.urandom(8), "little") % len(data)]
    chunk = index.chunks[number]
    unpack(chunk, b"".join(blob.read(chunk.blob_offset, chunk.blob_end)), ZstdDecompressor())


def _fetch_disk(
    store: Store,
    repository: Repository,
    roles: ArtifactManifest,
    config: ArtifactConfig,
    index: ChunkIndex,
    progress: Progress | None,
) -> Counts:
    """Create the disk. A damaged one stays until it is replaced: sandboxes may use it, and its good chunks are reused."""
    # Imported late: loading zstandard and threads takes longer than finding an existing disk.
    from runner.store.chunks import transfer
    from runner.store.partial import PartialDisk, is_full, write_error

    data = [chunk for chunk in index.chunks if not chunk.zero]
    try:
        partial = PartialDisk(store, config.disk_digest, index)
        try:
            wanted = _missing(partial, data)
            limits.check(store.root, sum(chunk.length for chunk in wanted))
            fetched = transfer(Joined(repository, roles.disk), wanted, partial.fd, progress)
            partial.finish()
        finally:
            partial.close()
    except OSError as err:
        if is_full(err):
            store.partial(config.disk_digest).unlink(missing_ok=True)  # free the space for other programs
        raise write_error(store, err, index.disk_size) from err
    holes = sum(chunk.length for chunk in index.chunks if chunk.zero)
    reused = sum(chunk.length for chunk in data) - sum(chunk.length for chunk in wanted)
    return Counts(fetched, reused, holes)


def _missing(partial: PartialDisk, data: list[Chunk]) -> list[Chunk]:
    """Copy chunks from disks of the store to the partial file. Return those that are still missing."""
    if not partial.search():
        return data
    from rootdisk.system.threads import for_each

    present: set[int] = set()

    def provide(chunk: Chunk) -> None:
        """Copy one chunk, if it is there."""
        if partial.provide(chunk):
            present.add(chunk.offset)

    for_each(data, provide, THREADS)
    return [chunk for chunk in data if chunk.offset not in present]
