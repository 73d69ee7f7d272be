"""A packed disk: its blobs together are the zstd file of the raw disk; what earlier disks have is used again, and no more."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from imagetool.ext4.plan import DiskOptions, plan
from imagetool.packing import parts
from imagetool.packing.pack import Packed, pack
from imagetool.packing.reuse import PARTS, Earlier, blob_name
from imagetool.receipts import read_receipt, write_receipt
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest
from rootdisk.system.crew import Crew
from tests.support.disks import UUID, tree_of, write
from tests.support.tars import file

CHANCE = random.Random(7)
TEXT = CHANCE.randbytes(1 << 20)


def layer(name: bytes, count: int, size: int = 40_000) -> bytes:
    return b"".join(
        file(b"%b-%03d" % (name, n), TEXT[n * 997 : n * 997 + size // 2] + bytes(size // 2)) for n in range(count)
    )


BASE, TOP = layer(b"base", 120) + file(b"zeros", bytes(3 << 20)), layer(b"top", 9)


@pytest.fixture(autouse=True)
def small_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small layer has several."""
    monkeypatch.setattr(parts, "MIN_BYTES", 1 << 20)
    monkeypatch.setattr(parts, "MEAN_CHUNKS", 2)


def packed(
    folder: Path, *layers: bytes, earlier: tuple[Path, ...] = (), threads: int = 2, size: int = 64 << 20
) -> Packed:
    folder.mkdir()
    tree, sources = tree_of(*layers)
    with Crew(threads) as crew, Earlier(earlier) as found:
        return pack(plan(tree, DiskOptions(size, UUID)), sources, folder, crew, earlier=found)


def blobs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("rootfs.ext4.zst.*"))]


def test_all_blobs_are_the_zstd_file(tmp_path: Path) -> None:
    made = packed(tmp_path / "a", BASE, TOP)
    content = blobs(tmp_path / "a")
    assert len(content) == len(made.parts) > 5
    assert [(Digest.of(blob), len(blob)) for blob in content] == [(part.digest, part.size) for part in made.parts]
    whole = b"".join(content)
    tree, sources = tree_of(BASE, TOP)
    raw = write(tmp_path / "disk", tree, sources).read_bytes()
    done = subprocess.run(["zstd", "-dcq"], input=whole, capture_output=True, check=True)
    assert done.stdout == raw
    for chunk in made.index.chunks:
        assert chunk.zero == (not any(raw[chunk.offset : chunk.end]))
    # the seek table is at the end, over the frames of all blobs
    assert int.from_bytes(whole[-9:-5], "little") == len(made.index.chunks)
    assert whole[-4:] == (0x8F92EAB1).to_bytes(4, "little")


def test_the_same_bytes_by_any_number_of_threads(tmp_path: Path) -> None:
    first = packed(tmp_path / "1", BASE, TOP, threads=1)
    for threads in (2, 7):
        assert packed(tmp_path / str(threads), BASE, TOP, threads=threads) == first
        assert blobs(tmp_path / str(threads)) == blobs(tmp_path / "1")


def test_a_new_top_layer_leaves_the_blobs_below(tmp_path: Path) -> None:
    packed(tmp_path / "1", BASE, TOP)
    alone = packed(tmp_path / "2", BASE, layer(b"other", 11))
    again = packed(tmp_path / "2-again", BASE, layer(b"other", 11), earlier=(tmp_path / "1",))
    assert (again.index, again.parts) == (alone.index, alone.parts)
    assert blobs(tmp_path / "2-again") == blobs(tmp_path / "2")
    shared = [n for n in range(len(again.parts)) if os.stat(tmp_path / "2-again" / blob_name(n)).st_nlink == 2]
    assert len(shared) >= len(again.parts) - 4
    assert again.new_chunks < alone.new_chunks / 3
    assert again.reused_chunks + again.new_chunks == alone.new_chunks + alone.reused_chunks


def test_no_blob_is_larger_than_wanted(tmp_path: Path) -> None:
    """Whatever its chunks are, and with holes and the seek table; an error where one chunk may be too large."""
    noise = random.Random(3).randbytes(1_040_000)
    base = b"".join(file(b"noise-%d" % n, bytes([n]) + noise) for n in range(20)) + layer(b"base", 120)
    tree, sources = tree_of(base, TOP)
    made = plan(tree, DiskOptions(8 << 30, UUID))
    whole = packed(tmp_path / "whole", base, TOP, size=8 << 30)
    for max_blob in (2 << 20, 5 << 20, 1 << 30):
        folder = tmp_path / str(max_blob)
        folder.mkdir()
        found = pack(made, sources, folder, Crew(1), max_blob=max_blob)
        assert max(part.size for part in found.parts) <= max_blob
        assert found.index == whole.index
        assert b"".join(blobs(folder)) == b"".join(blobs(tmp_path / "whole"))
    assert found.parts == whole.parts
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="max_blob: a chunk") as failed:
        pack(made, sources, tmp_path / "none", Crew(1), max_blob=1 << 20)
    assert "2MiB or more" in failed.value.hint
    assert not list((tmp_path / "none").iterdir())


def test_a_changed_file_changes_its_own_chunk(tmp_path: Path) -> None:
    """And an added one what counts it: the chunk of superblock and bitmaps, a table of inodes, a directory; no backups."""

    def new(before: Packed, after: Packed) -> list[int]:
        known = {chunk.sha256 for chunk in before.index.chunks}
        return [chunk.offset for chunk in after.index.chunks if chunk.sha256 not in known]

    def base(changed: bytes, added: bytes = b"") -> bytes:
        return layer(b"base", 60) + file(b"base-060", changed) + added + layer(b"later", 60)

    first = packed(tmp_path / "1", base(TEXT[:9000]), TOP, size=1 << 30)
    assert len(new(first, packed(tmp_path / "2", base(TEXT[9000:18000]), TOP, size=1 << 30))) == 1
    offsets = new(first, packed(tmp_path / "3", base(TEXT[:9000], file(b"base-061", TEXT[:90])), TOP, size=1 << 30))
    assert len(offsets) == 4
    assert 0 in offsets
    assert not {group * 32768 * 4096 for group in (1, 3, 5, 7)} & set(offsets)


def test_frames_of_a_changed_blob_are_reused(tmp_path: Path) -> None:
    """A file of the base that a later layer hides changes one blob of it, and one chunk of that."""
    before = packed(tmp_path / "1", BASE, TOP)
    hiding = TOP + file(b".wh.base-050")
    alone = packed(tmp_path / "2", BASE, hiding)
    again = packed(tmp_path / "2-again", BASE, hiding, earlier=(tmp_path / "1",))
    assert blobs(tmp_path / "2-again") == blobs(tmp_path / "2")
    metadata = sum(part.chunks for part in alone.parts if part.key is None)
    assert again.new_chunks <= metadata + 2
    changed = [part for part in again.parts if part.key is not None and part not in before.parts]
    assert len(changed) <= 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "compressor", "parts", "nothing"])
def test_damaged_earlier_disks(tmp_path: Path, damage: str) -> None:
    """A frame that is not what the index says is made again; a blob of another length is not linked."""
    packed(tmp_path / "1", BASE, TOP)
    hiding = TOP + b"".join(
        file(b".wh.base-%03d" % n) for n in range(0, 120, 4)
    )  # so that blobs change and frames stay
    alone = packed(tmp_path / "2", BASE, hiding)
    for path in (tmp_path / "1").glob("*.zst.*"):
        data = bytearray(path.read_bytes())
        if damage == "flipped":
            data[len(data) // 2 :: 5000] = bytes(len(data[len(data) // 2 :: 5000]))
            path.write_bytes(data)
        elif damage == "cut":
            path.write_bytes(data[:-1])
        elif damage == "gone":
            path.unlink()
    described = read_receipt(tmp_path / "1" / PARTS)
    if damage == "compressor":
        described["compressor"]["libzstd"] = "0.1"
        write_receipt(tmp_path / "1" / PARTS, described)
    elif damage == "parts":
        (tmp_path / "1" / PARTS).write_text("{}")
    again = packed(tmp_path / "2-again", BASE, hiding, earlier=(tmp_path / "1",))
    if damage != "flipped":  # a linked blob is verified when it is published
        assert blobs(tmp_path / "2-again") == blobs(tmp_path / "2")
    assert (again.index, again.parts) == (alone.index, alone.parts)
    if damage in ("compressor", "parts", "gone"):
        assert again.reused_chunks == 0
    if damage == "nothing":
        assert again.reused_chunks > 0


def test_large_disks_have_larger_blobs(tmp_path: Path) -> None:
    made = packed(tmp_path / "a", layer(b"base", 1500, 60_000), size=256 << 20)
    assert 16 < len(made.parts) < 100
