"""Tree in, plan out: every block has its place before the first byte is written.

    placing.py      gives every part of the tree its blocks
    rendering.py    makes the bytes of metadata when they are written
    identity.py     names the chunks that an earlier disk may have

Order on the disk: superblock, descriptors, bitmaps, inode tables; then what placing.py says.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imagetool.ext4 import bitmaps
from imagetool.ext4.chunk import GRID_BLOCKS, BlockRun, DiskChunk, MetadataChunk, fixed_run, is_zero, metadata_chunks
from imagetool.ext4.directories import Directories
from imagetool.ext4.geometry import Geometry, TooSmall
from imagetool.ext4.identity import Identity
from imagetool.ext4.inode_numbers import Numbers, assign
from imagetool.ext4.placing import Placing
from imagetool.ext4.rendering import Rendering
from imagetool.tree.model import Source, Tree
from rootdisk.artifact.format import SlotExtent
from rootdisk.artifact.layers import LayerInodes
from rootdisk.durable import advice, write_at
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.ext4.checksum import disk_seed
from rootdisk.ext4.format import BLOCK, EXT4_GOOD_OLD_FIRST_INO, INODE_SIZE


class DiskOptions(NamedTuple):
    """A disk's options: `size` in bytes, `uuid` of 16 bytes, `time` of the superblock in seconds.

    `directories` are those of an earlier plan of a tree with the same layers and UUID. `identity` decides the layers and
    the UUID, and so with what this plan adds the chunks of directories and inode tables; b"" if none shall be named.
    """

    size: int
    uuid: bytes
    time: int = 0
    directories: Directories | None = None
    identity: bytes = b""


class Plan(NamedTuple):
    """A disk of `size` bytes: `chunks` ascend and do not overlap; between them are holes.

    `layers` are each layer's diff ID and its first inode number: numbers below the next layer's are its own.
    """

    size: int
    slots: tuple[SlotExtent, ...]
    chunks: Sequence[DiskChunk]
    free_bytes: int
    layers: tuple[LayerInodes, ...]
    directories: Directories


def plan(tree: Tree, options: DiskOptions) -> Plan:
    """Decide where everything of `tree` goes. The tree must not change while chunks of the plan are rendered.

    BadInput: too small a size (it says which would do), or a file that ext4 cannot hold.
    """
    numbers = assign(tree)
    try:
        return _plan(tree, options, numbers)
    except TooSmall as err:
        mebibytes = _enough(tree, options, numbers, err.needed)
        raise BadInput(
            f"size: the image does not fit into {options.size >> 20} MiB", f"it needs {mebibytes} MiB or more"
        ) from err


def _plan(tree: Tree, options: DiskOptions, numbers: Numbers) -> Plan:
    geometry = Geometry.of(options.size // BLOCK * BLOCK, len(numbers.by_number))
    hash_seed = hashlib.sha256(b"rootdisk hash seed" + options.uuid).digest()[:16]
    placed = Placing(tree, numbers, geometry, disk_seed(options.uuid), hash_seed, options.directories)
    chunks = placed.place_all()
    end = placed.blocks.space.next
    if end > geometry.blocks:
        raise TooSmall(end * BLOCK)
    rendering = Rendering(placed, options.uuid, hash_seed, options.time)
    identity = Identity(placed, options.identity) if options.identity else None
    used_inodes = bytes(n < EXT4_GOOD_OLD_FIRST_INO or i is not None for n, i in enumerate(numbers.by_number))
    directories = (node.number for node in numbers.directories)
    groups = bitmaps.groups(geometry, placed.blocks.used, used_inodes, directories, placed.seed)
    first, *backups = rendering.superblocks(groups)
    chunks += metadata_chunks(sorted([first, *_metadata(placed, rendering, groups, identity)], key=_place))
    for backup in backups:
        chunks += metadata_chunks([backup])
    chunks += _inode_tables(geometry, rendering, groups, identity)
    chunks.sort(key=lambda chunk: chunk.offset)
    layers = zip(tree.layers, numbers.firsts, strict=True)
    return Plan(
        geometry.blocks * BLOCK,
        tuple(placed.slots),
        chunks,
        groups.free_blocks * BLOCK,
        tuple(LayerInodes(layer.diff_id, first) for layer, first in layers),
        placed.kept_directories(),
    )


def _metadata(
    placed: Placing, rendering: Rendering, groups: bitmaps.Groups, identity: Identity | None
) -> Iterator[BlockRun]:
    """Yield all metadata but superblocks, descriptors and inode tables."""
    yield rendering.journal_block()
    for place, content in (*groups.bitmaps, *placed.tree_blocks):
        yield fixed_run(place, content)
    name = identity.directory_blocks if identity is not None else None
    yield from placed.directory_blocks.runs(rendering.directory_blocks, name)
    yield from placed.link_blocks.runs(rendering.link_blocks)
    yield from placed.xattr_blocks.runs(rendering.xattr_blocks)


def _inode_tables(
    geometry: Geometry, rendering: Rendering, groups: bitmaps.Groups, identity: Identity | None
) -> Iterator[DiskChunk]:
    """The used blocks of all inode tables."""
    for group, start, blocks in groups.tables:
        for done in range(0, blocks, GRID_BLOCKS):
            count = min(GRID_BLOCKS, blocks - done)
            inodes = count * BLOCK // INODE_SIZE
            first = group * geometry.inodes_per_group + 1 + done * BLOCK // INODE_SIZE
            key = identity.inodes(first, first + inodes) if identity is not None else None
            make = partial(rendering.inodes, first, inodes)
            yield MetadataChunk((start + done) * BLOCK, count * BLOCK, make, key)


def _place(run: BlockRun) -> int:
    return run.place


def _enough(tree: Tree, options: DiskOptions, numbers: Numbers, needed: int) -> int:
    """Return the least MiB that do. A larger disk has more metadata of its own, so each bound is tried."""
    mebibytes = options.size >> 20
    while True:
        mebibytes = max(mebibytes + 1, -(-needed >> 20))
        try:
            _plan(tree, options._replace(size=mebibytes << 20), numbers)
        except TooSmall as err:
            needed = err.needed
        else:
            return mebibytes


def write_disk(
    plan: Plan,
    sources: Sequence[Source],
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the raw, sparse disk as a new file at `path`, with a thread for each processor.

    `progress` is told (bytes done, bytes in all) of data.
    """
    total, done = sum(chunk.length for chunk in plan.chunks), 0
    chunks, counting = iter(plan.chunks), threading.Lock()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def write() -> None:
        """Write the chunks that no other thread has taken."""
        nonlocal done
        try:
            for chunk in chunks:
                raw = chunk.render(sources)
                if not is_zero(raw):
                    write_at(fd, raw, chunk.offset)
                if progress is not None:
                    with counting:
                        done += chunk.length
                        progress(done, total)
        except BaseException:
            for _ in chunks:  # the others need not go on
                pass
            raise

    try:
        try:
            os.ftruncate(fd, plan.size)
        except OSError as err:
            folder = Path(path).absolute().parent
            raise RootdiskError(
                f"cannot write the disk in {folder}: {err.strerror}", advice(err, plan.size, folder)
            ) from err
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "write") as pool:
            for written in [pool.submit(write) for _ in os.sched_getaffinity(0)]:
                written.result()
    finally:
        os.close(fd)
