"""The frames we write are read by zstd itself, with and without the seek table."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import zstandard

from rootdisk.artifact.zstd_frames import compressor, seek_table, zero_frame


@pytest.mark.parametrize("length", [1, 4096, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, (5 << 20) + 3])
def test_a_zero_frame_is_zeros(length: int) -> None:
    assert zstandard.ZstdDecompressor().decompress(zero_frame(length), max_output_size=length) == bytes(length)


def test_the_zstd_program_reads_the_file(tmp_path: Path) -> None:
    raw = [b"rootdisk" * 1000, bytes(300_000), b"\x01" * 77]
    frames = [compressor().compress(raw[0]), zero_frame(len(raw[1])), compressor().compress(raw[2])]
    table = seek_table((len(frame), len(data)) for frame, data in zip(frames, raw, strict=True))
    path = tmp_path / "disk.zst"
    path.write_bytes(b"".join(frames) + table)
    assert subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout == b"".join(raw)
    # the footer: number of frames, no checksums, magic
    assert table[-9:] == (3).to_bytes(4, "little") + b"\0" + (0x8F92EAB1).to_bytes(4, "little")
    assert int.from_bytes(table[4:8], "little") == len(table) - 8


def test_a_gigabyte_of_zeros_is_small() -> None:
    assert len(zero_frame(1 << 30)) < 33_000
