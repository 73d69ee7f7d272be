"""Which requests are made, and frames that are not what the index says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from rootdisk.artifact.format import Chunk
from rootdisk.artifact.zstd_frames import unpack
from rootdisk.errors import DigestMismatch
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.chunks import GAP_BYTES, PART_BYTES, plan
from runner.store.store import Store
from tests.support.artifacts import noise, publish, sample

DATA = b"0123456789" * 100
FRAME = zstandard.compress(DATA)


def chunks(*frames: tuple[int, int]) -> list[Chunk]:
    """Chunks by the start and end of their frames."""
    return [Chunk(0, 1, start, end - start, bytes(32), False) for start, end in frames]


def spans(*frames: tuple[int, int], ends: Sequence[int] = ()) -> list[tuple[int, int]]:
    return [(part.start, part.end) for part in plan(chunks(*frames), ends=ends)]


def test_near_frames_are_asked_for_together() -> None:
    assert spans() == []
    assert spans((7, 9)) == [(7, 9)]
    assert spans((0, 10), (10, 20), (20 + GAP_BYTES, 30 + GAP_BYTES)) == [(0, 30 + GAP_BYTES)]
    assert spans((0, 10), (11 + GAP_BYTES, 12 + GAP_BYTES)) == [(0, 10), (11 + GAP_BYTES, 12 + GAP_BYTES)]


def test_long_runs_are_cut_for_several_connections() -> None:
    mebibyte = 1 << 20
    frames = [(n * mebibyte, (n + 1) * mebibyte) for n in range(100)]
    found = spans(*frames)
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, 100 * mebibyte)
    assert max(end - start for start, end in found) == PART_BYTES
    assert spans((0, 2 * PART_BYTES)) == [(0, 2 * PART_BYTES)]  # a frame is never cut


def test_a_part_is_one_request_of_one_blob() -> None:
    frames = [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert spans(*frames, ends=(10, 30, 45)) == [(0, 10), (10, 30), (30, 40)]
    assert spans(*frames, ends=(15, 45)) == [(0, 20), (20, 40)]  # one frame in two blobs
    assert spans((0, 10), (30, 40), ends=(10, 20, 45)) == [(0, 10), (30, 40)]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        FRAME[:-1],
        FRAME + b"\0",
        FRAME + FRAME,
        zstandard.compress(DATA[:-1]),
        zstandard.compress(DATA + b"x"),
        zstandard.compress(DATA[:-1] + b"x"),
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 7 + b"\0" + b"\1\0\0",  # says it holds 2^56 bytes
        FRAME[:4] + bytes([FRAME[4] ^ 0xFF]) + FRAME[5:],
        DATA,
    ],
    ids=["none", "short", "byte behind", "frame behind", "less", "more", "other", "huge", "header", "no frame"],
)
def test_other_frames_are_refused(frame: bytes) -> None:
    chunk = Chunk(0, len(DATA), 0, len(frame), hashlib.sha256(DATA).digest(), False)
    with pytest.raises(DigestMismatch):
        unpack(chunk, frame, zstandard.ZstdDecompressor())


def test_the_right_frame_without_its_size() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(DATA)
    chunk = Chunk(0, len(DATA), 0, len(frame), hashlib.sha256(DATA).digest(), False)
    assert unpack(chunk, frame, zstandard.ZstdDecompressor()) == DATA


def test_from_a_layout_and_from_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.store.pull import pull

    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    store = Store.open()
    old, new = noise(12, 100_000), noise(2, 100_000, seed=1)
    for tag, raw in (("1", [*old, bytes(300_000)]), ("2", [*old[:5], new[0], bytes(4096), *old[6:], new[1]])):
        made = sample(raw, blobs=int(tag) * 2)
        reference = f"oci:{tmp_path}/layout:{tag}"
        publish(made, reference, RegistryOptions())
        local = pull(store, parse_reference(reference), RegistryOptions(), Platform.host())
        assert local.disk.read_bytes() == made.disk
        assert local.disk.stat().st_mode & 0o777 == 0o400
        assert local.disk.stat().st_blocks * 512 < len(made.disk) - local.holes + 65536
    assert local.reused == 1_100_000
    assert local.fetched < 2 * 100_100 + GAP_BYTES
