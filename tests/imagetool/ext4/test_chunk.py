"""Chunks of file data: what lies one after the other in a tar is read at once, whatever lies between."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from imagetool.ext4.chunk import DataChunk, Piece
from imagetool.tree.layers import FileSource
from rootdisk.errors import DigestMismatch

DATA = random.Random(1).randbytes(200_000)


class Counted:
    """A file that counts how often it is read."""

    def __init__(self, file: FileSource) -> None:
        self.file, self.count = file, 0

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        self.count += 1
        self.file.read_into(buffers, offset)


@pytest.mark.parametrize(
    ("pieces", "reads"),
    [
        ([(4096 * n, 512 + 5632 * n, 4000) for n in range(30)], 1),  # a tar in order, with headers
        ([(4096 * n, 150_000 - 5632 * n, 4000) for n in range(20)], 20),  # in another order
        ([(0, 0, 10), (4096, 8202, 10), (8192, 16_405, 10)], 2),  # a gap of 8192 bytes, and one of 8193
        ([(n, 2 * n, 1) for n in range(3000)], 6),  # more than one call takes
        ([(0, 100, 4096), (4096, 100, 4096)], 2),  # the same bytes twice
    ],
)
def test_every_byte_is_where_it_belongs(tmp_path: Path, pieces: list[Piece], reads: int) -> None:
    (tmp_path / "tar").write_bytes(DATA)
    length = -(-max(at + size for at, _, size in pieces) // 4096) * 4096
    wanted = bytearray(length)
    for at, offset, size in pieces:
        wanted[at : at + size] = DATA[offset : offset + size]
    fd = os.open(tmp_path / "tar", os.O_RDONLY)
    try:
        source = Counted(FileSource(fd, "1 of 1"))
        assert DataChunk(0, length, 0, "sha256:0", pieces).render([source]) == wanted
        assert source.count == reads
    finally:
        os.close(fd)


def test_a_tar_that_has_become_shorter(tmp_path: Path) -> None:
    """It ends in the second of three buffers."""
    (tmp_path / "tar").write_bytes(DATA[:100])
    fd = os.open(tmp_path / "tar", os.O_RDONLY)
    try:
        with pytest.raises(DigestMismatch, match="ends at byte 100"):
            DataChunk(0, 4096, 0, "sha256:0", [(0, 0, 60), (60, 70, 60), (120, 140, 10)]).render(
                [FileSource(fd, "1 of 1")]
            )
    finally:
        os.close(fd)
