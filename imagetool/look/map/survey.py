"""Survey a disk: byte ranges by kind, files with the space they take, chunks by what a pull does with them.

    with opened("oci:cache/artifacts/demo:1", …) as disk:
        survey(disk)

From an artifact in a registry, only chunk index and file system metadata are fetched.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imagetool.ext4.reader import Node, Reader
from imagetool.look.inspection import InspectedDisk, shown
from imagetool.look.map.grid import Run, without
from imagetool.packing.boot_trace import TITLE, parse, places
from rootdisk.artifact.format import ChunkIndex
from rootdisk.artifact.published import open_artifact
from rootdisk.cli.files import read_small_file
from rootdisk.durable import data_runs
from rootdisk.errors import BadInput
from rootdisk.ext4.format import EXT4_EXTENTS_FL, EXT4_JOURNAL_INO
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.text import printable

METADATA, JOURNAL, SLOT, UNUSED, FIRST_LAYER = range(5)
ZERO, NEW, REUSED = range(3)
SLOT_PATH = b"/.rootdisk/slot"
TRACE_MAX_BYTES = 64 << 20
_READ = re.compile(r"\s*([0-9]{1,19})[\s,]+([0-9]{1,19})\s*(?:#.*)?")


class Kind(NamedTuple):
    """The use of bytes on a disk; `detail` is the diff ID of a layer."""

    name: str
    detail: str = ""


class Sized(NamedTuple):
    """A file: first name, size, bytes that its data takes on the disk, and the kind of its layer."""

    path: str
    size: int
    room: int
    kind: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk to survey; `holes` are its ranges of zeros that take no space."""

    contents: InspectedDisk
    holes: tuple[Run, ...]
    index: ChunkIndex | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """The result: `runs` are sorted and cover everything except holes. Journal and slots are included completely."""

    size: int
    kinds: tuple[Kind, ...]
    runs: tuple[Run, ...]
    files: tuple[Sized, ...]


@contextlib.contextmanager
def opened(what: str, platform: Platform, options: RegistryOptions) -> Iterator[Disk]:
    """Open the raw disk in file `what`, or the disk of the artifact it refers to."""
    if Path(what).is_file():
        with Reader.open(Path(what)) as reader:
            yield Disk(InspectedDisk(reader), tuple(_holes_of_file(Path(what))))
        return
    with open_artifact(parse_reference(what), platform, options) as artifact:
        holes = tuple(Run(c.offset, c.length, ZERO) for c in artifact.index.chunks if c.zero)
        yield Disk(InspectedDisk.of(artifact), holes, artifact.index, str(artifact.descriptor.digest))


def _holes_of_file(path: Path) -> Iterator[Run]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 0
        for start, end in data_runs(fd):
            if start > at:
                yield Run(at, start - at, ZERO)
            at = end
        if (size := os.fstat(fd).st_size) > at:
            yield Run(at, size - at, ZERO)
    finally:
        os.close(fd)


def survey(disk: Disk) -> Survey:
    """Walk the complete tree of the disk.

    Raises:
        BadInput: The disk is damaged.
    """
    reader, config = disk.contents.reader, disk.contents.config
    layers = config.layers if config is not None else ()
    kinds = [Kind("file-system metadata"), Kind("journal"), Kind("slot"), Kind("unused")]
    kinds += [Kind(_layer_name(n, layer.diff_id, len(layers)), layer.diff_id) for n, layer in enumerate(layers, 1)]
    kinds += [] if layers else [Kind("files")]
    by_layer = {layer.diff_id: FIRST_LAYER + n for n, layer in enumerate(layers)}
    fixed_runs = _runs(reader, reader.node(EXT4_JOURNAL_INO), JOURNAL)
    seen: set[int] = set()
    files, data, metadata = [], [], []
    for path, node in reader.walk():
        if node.number in seen or not node.flags & EXT4_EXTENTS_FL:
            continue
        seen.add(node.number)
        kind = by_layer.get(disk.contents.layer(node), FIRST_LAYER)
        runs = _runs(reader, node, kind)
        if node.type != stat.S_IFREG:
            metadata += [run._replace(kind=METADATA) for run in runs]
        elif path == SLOT_PATH:
            fixed_runs += [run._replace(kind=SLOT) for run in runs]
        else:
            data += runs
            files.append(Sized(shown(path), node.size, sum(run.length for run in runs), kind))
    known = sorted([*fixed_runs, *without([*data, *metadata], disk.holes)])
    rest = without(without([Run(0, reader.blocks * reader.block_size, METADATA)], disk.holes), known)
    everything = [*known, *(part for run in rest for part in _split(reader, run))]
    return Survey(reader.blocks * reader.block_size, tuple(kinds), tuple(sorted(everything)), tuple(files))


def _layer_name(number: int, diff_id: str, count: int) -> str:
    if not diff_id.startswith("rootdisk:"):
        return f"layer {number}"
    return "rootdisk's own" if number == count else "files of images.toml"


def _runs(reader: Reader, node: Node, kind: int) -> list[Run]:
    size = reader.block_size
    extents = reader.extents(node) if node.flags & EXT4_EXTENTS_FL else []
    return [Run(e.physical * size, e.count * size, kind) for e in extents if e.written]


def _split(reader: Reader, run: Run) -> Iterator[Run]:
    """Split a range outside of files into metadata and unused parts, from the block bitmaps."""
    size, per_group = reader.block_size, reader.blocks_per_group
    block, end = run.offset // size, run.end // size
    first = reader.first_data_block
    start, kind = block, None
    while block < end:
        group, bit = divmod(block - first, per_group)
        bitmap = reader.block_bitmap(group) if block >= first else None
        block_kind = METADATA if bitmap is None or bitmap[bit >> 3] >> (bit & 7) & 1 else UNUSED
        if kind is not None and block_kind != kind:
            yield Run(start * size, (block - start) * size, kind)
            start = block
        kind = block_kind
        block += 1
    if kind is not None:
        yield Run(start * size, (end - start) * size, kind)


def chunk_runs(index: ChunkIndex, against: ChunkIndex | None) -> list[Run]:
    """Return a run for each chunk: new, reused from `against`, or zero."""
    have = {chunk.sha256 for chunk in against.chunks if not chunk.zero} if against is not None else set()
    return [
        Run(c.offset, c.length, ZERO if c.zero else REUSED if c.sha256 in have else NEW) for c in index.chunks
    ]  # fmt: skip


def read_trace(path: Path, disk_size: int) -> list[Run]:
    """Read the trace of a boot: a line `offset,length` in bytes for each read, in order. `#` begins a comment.

    Raises:
        BadInput: The file cannot be read or is not a trace of this disk.
    """
    lines = read_small_file(path, TRACE_MAX_BYTES).decode("utf-8", "replace").splitlines()
    runs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _READ.fullmatch(line)
        if match is None:
            raise BadInput(f"{path}, line {number}: {line!r:.80} is not a read", "write offset,length in bytes")
        run = Run(int(match[1]), int(match[2]), 0)
        if run.end > disk_size:
            raise BadInput(f"{path}, line {number}: a read past the end of the disk", "use a trace of this disk")
        if run.length:
            runs.append(run)
    return runs


def traced(path: Path, disk: Disk) -> list[Run]:
    """Return what a boot reads by a trace: lines of offset and length, or paths, as `imagetool trace` writes them.

    Raises:
        BadInput: The file cannot be read or is not a trace of this disk.
    """
    reader = disk.contents.reader
    text = read_small_file(path, TRACE_MAX_BYTES).decode("utf-8", "surrogateescape")
    if not text.startswith(TITLE):
        return read_trace(path, reader.blocks * reader.block_size)
    lines = parse(text, printable(path))
    return [Run(offset, length, 0) for line in lines for offset, length in places(reader, line)]


def boot_reads(disk: Disk) -> list[Run]:
    """Return the chunks that a boot reads, in order, from the config of the artifact; [] if it has none."""
    chunks = disk.index.chunks if disk.index is not None else ()
    numbers = disk.contents.config.boot_chunks if disk.contents.config is not None else ()
    return [Run(chunks[n].offset, chunks[n].length, 0) for n in numbers if 0 <= n < len(chunks)]
