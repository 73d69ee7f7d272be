"""Frames made while a layer is inflated: the same disk, each frame used, and every byte can still be read."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from imagetool.ext4.plan import DiskOptions, plan
from imagetool.packing import early_frames, parts
from imagetool.packing.early_frames import EarlyFrames, LayerFrames
from imagetool.packing.pack import pack
from imagetool.tree.layers import FileSource
from imagetool.tree.merge import merge
from imagetool.tree.model import Source
from imagetool.tree.tar import scan_tar
from imagetool.tree.tar_stream import TarStream
from rootdisk.errors import BadInput
from rootdisk.system.crew import Crew
from rootdisk.system.scratch import unnamed_file
from tests.support.disks import UUID, tree_of
from tests.support.tars import END, file, pax

CHANCE = random.Random(3)
MIB = 1 << 20
FILES = {
    b"a-small": CHANCE.randbytes(5000),
    b"b-just-large": CHANCE.randbytes(MIB),
    b"c-not-quite": b"text" * (MIB // 4 - 1),
    b"d-zeros": bytes(3 * MIB),
    b"e-odd": b"some words\n" * 200_001,
    b"f-empty": b"",
    b"g-random": CHANCE.randbytes(2 * MIB + 4097),
}
SPARSE = pax([(b"GNU.sparse.size", b"9000000"), (b"GNU.sparse.map", b"0,1048576,7000000,1048576")])
TAR = b"".join(file(name, data) for name, data in FILES.items()) + SPARSE + file(b"h-sparse", CHANCE.randbytes(2 * MIB))


class Layer:
    """A layer as a build has it: the tar with holes, and what was in them."""

    def __init__(self, large: LayerFrames, tar: FileSource) -> None:
        self.large, self.tar = large, tar

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        self.large.read_into(buffers, offset, self.tar)


def inodes(early: EarlyFrames) -> set[int]:
    return {os.fstat(fd).st_ino for fd in early._files}


@pytest.mark.parametrize("piece", [1000, 70_001, len(TAR)])
@pytest.mark.parametrize("guess", [0, 16 * MIB, 1 << 40])
def test_the_same_disk(tmp_path: Path, piece: int, guess: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it was guessed wrongly where blobs end."""
    monkeypatch.setattr(parts, "MIN_BYTES", MIB)
    monkeypatch.setattr(parts, "MEAN_CHUNKS", 2)
    tree, whole = tree_of(TAR)
    (tmp_path / "plain").mkdir()
    plain = pack(plan(tree, DiskOptions(64 * MIB, UUID)), whole, tmp_path / "plain", Crew(1))
    tar = TAR + END
    (tmp_path / "early").mkdir()
    with Crew(2) as crew, EarlyFrames(tmp_path, crew) as early:
        fd, large = unnamed_file(tmp_path), early.layer("sha256:0", lambda: guess)
        stream = TarStream((tar[at : at + piece] for at in range(0, len(tar), piece)), fd, large)
        index = scan_tar(stream, "layer 0")
        stream.finish()
        large.finish()
        # Nothing of large files is in it, so no frame of theirs is made again.
        assert os.fstat(fd).st_blocks * 512 < 4 * MIB + sum(len(data) for data in FILES.values() if len(data) < MIB)
        layer = Layer(large, FileSource(fd, "0"))
        read = bytearray(len(TAR))
        layer.read_into([memoryview(read)], 0)
        assert read == TAR
        disk_plan = plan(merge([("sha256:0", index)]), DiskOptions(64 * MIB, UUID))
        sources: list[Source] = [layer]
        made = pack(disk_plan, sources, tmp_path / "early", crew, early=early)
        large_chunks = [chunk for chunk in disk_plan.chunks if chunk.key and early.frame(chunk.key)]
        os.close(fd)
        linked = [path for path in (tmp_path / "early").iterdir() if path.stat().st_ino in inodes(early)]
    assert made == plain
    assert len(linked) >= (2 if guess == 16 * MIB else 0)
    assert [path.read_bytes() for path in sorted((tmp_path / "early").iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "plain").iterdir())
    ]
    assert len(large_chunks) == 2 + 6 + 5 + 5  # of b, d, e and g


def test_a_tar_that_ends_early(tmp_path: Path) -> None:
    with EarlyFrames(tmp_path, Crew(1)) as early:
        fd = unnamed_file(tmp_path)
        stream = TarStream(iter([TAR[: 2 * MIB], TAR[2 * MIB : -5000]]), fd, early.layer("sha256:0", lambda: 16 * MIB))
        with pytest.raises(BadInput, match="do not fit into the tar"):
            scan_tar(stream, "layer 0")
        os.close(fd)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that cannot be written is an error of the build."""
    monkeypatch.setattr(early_frames, "unnamed_file", lambda folder, mode: os.open("/dev/full", os.O_WRONLY))
    with EarlyFrames(tmp_path, Crew(1)) as early:
        large = early.layer("sha256:0", lambda: 0)
        large.begin(0, MIB)(0, memoryview(CHANCE.randbytes(MIB)))
        with pytest.raises(OSError, match="No space left"):
            large.finish()
