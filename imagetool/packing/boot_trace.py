"""Boot traces: a text file of the paths that a boot has read, in order. They decide `boot.chunks` of an artifact.

    # rootdisk boot trace
    (metadata)
    /usr/bin/python3.11
    /etc/passwd

`(metadata)` stands for the file system's own blocks. The inodes and directories on the way to a path are read with it. A path
that a later version of the disk lacks is skipped. So a trace can stay when an image changes.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from imagetool.ext4.reader import Node, Reader
from imagetool.packing.reuse import blob_name
from rootdisk.artifact.format import ChunkIndex
from rootdisk.errors import BadInput
from rootdisk.ext4.format import EXT4_EXTENTS_FL, EXT4_JOURNAL_INO, EXT4_ROOT_INO
from rootdisk.text import printable

TITLE = "# rootdisk boot trace"
METADATA = "(metadata)"
PATHS_MAX_COUNT = 100_000


def parse(text: str, what: str) -> tuple[str, ...]:
    """Return the lines of a trace that are not comments, each once: paths and METADATA. A byte order mark is ignored.

    Raises:
        BadInput: A line is neither; the message names `what` and the line.
    """
    lines: dict[str, None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (line.startswith("/") or line == METADATA) or "\0" in line:
            hint = "write a line for each path, as imagetool trace does"
            raise BadInput(f"{what}, line {number}: {printable(line, 80)} is not a path", hint)
        lines[line] = None
    if len(lines) > PATHS_MAX_COUNT:
        raise BadInput(f"{what}: more than {PATHS_MAX_COUNT} paths", "the trace of a boot is far smaller")
    return tuple(lines)


class PackedBlobs:
    """The blobs of a disk in a directory, read as one: what FramedDisk of rootdisk/artifact/disk.py reads frames from."""

    def __init__(self, folder: Path, blobs: int) -> None:
        self._files = [(folder / blob_name(number)).open("rb") for number in range(blobs)]
        self._ends: list[int] = []
        for file in self._files:
            self._ends.append((self._ends[-1] if self._ends else 0) + os.fstat(file.fileno()).st_size)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [start, end), which lie in one blob, as every frame does."""
        blob = bisect_right(self._ends, start)
        yield os.pread(self._files[blob].fileno(), end - start, start - (self._ends[blob - 1] if blob else 0))

    def close(self) -> None:
        """Close the blobs."""
        for file in self._files:
            file.close()


def chunks_of(reader: Reader, index: ChunkIndex, paths: Iterable[str]) -> tuple[int, ...]:
    """Return the numbers of the chunks that hold what a trace names, in its order, each once. Zero chunks are left out."""
    starts = [chunk.offset for chunk in index.chunks]
    numbers: dict[int, None] = {}
    for path in paths:
        for offset, length in places(reader, path):
            first, last = bisect_right(starts, offset) - 1, bisect_right(starts, offset + length - 1) - 1
            numbers.update((number, None) for number in range(first, last + 1) if not index.chunks[number].zero)
    return tuple(numbers)


def places(reader: Reader, path: str) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges, offset and length, of what a line of a trace names; nothing if the disk does not have it."""
    if path == METADATA:
        yield 0, (1 + reader.descriptor_blocks) * reader.block_size
        for number in (EXT4_ROOT_INO, EXT4_JOURNAL_INO):
            node = reader.node(number)
            yield from [(reader.inode_offset(number), reader.inode_size), *_extents(reader, node)[:1]]
        return
    for node in _way(reader, os.fsencode(path)):
        yield reader.inode_offset(node.number), reader.inode_size
        yield from _extents(reader, node)


def _way(reader: Reader, path: bytes) -> Sequence[Node]:
    """Return the directories on the way to `path` and its own inode; nothing if it is not there."""
    parts = path.strip(b"/").split(b"/")
    try:
        return [reader.root, *(reader.lookup(b"/".join(parts[:count])) for count in range(1, len(parts) + 1))]
    except BadInput:
        return ()


def _extents(reader: Reader, node: Node) -> list[tuple[int, int]]:
    if not node.flags & EXT4_EXTENTS_FL or stat.S_IFMT(node.mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        return []
    size = reader.block_size
    return [(extent.physical * size, extent.count * size) for extent in reader.extents(node) if extent.written]
