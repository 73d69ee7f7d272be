"""Bytes that are kept to save time: right or not there. A compressed vmlinux is one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagetool.build.artifact import _compressed
from imagetool.build.kept_bytes import recall, remember
from imagetool.guest.programs import VMLINUX_KEPT
from imagetool.receipts import Damaged
from rootdisk.artifact import zstd_frames
from rootdisk.oci.documents import Digest


def test_what_is_damaged_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    assert recall(path) is None
    remember(path, b"data")
    assert recall(path) == b"data"
    raw = path.read_bytes()
    for wrong in (b"", raw[:-1], raw + b"x", bytes([raw[0] ^ 1]) + raw[1:]):
        path.write_bytes(wrong)
        assert recall(path) is None


def test_a_vmlinux_is_compressed_once(tmp_path: Path) -> None:
    vmlinux, data = tmp_path / "vmlinux", b"kernel" * 10_000
    vmlinux.write_bytes(data)
    compressed = _compressed(vmlinux, Digest.of(data))
    assert compressed == zstd_frames.compressor().compress(data)
    vmlinux.unlink()  # it is not read again
    assert _compressed(vmlinux, Digest.of(data)) == compressed
    with pytest.raises(Damaged):  # another kernel
        _compressed(vmlinux, Digest.of(b"other"))
    (tmp_path / VMLINUX_KEPT).write_bytes(b"x")
    with pytest.raises(Damaged):
        _compressed(vmlinux, Digest.of(data))
    vmlinux.write_bytes(data[1:])
    with pytest.raises(Damaged, match="is damaged"):
        _compressed(vmlinux, Digest.of(data))
    vmlinux.write_bytes(data)
    assert _compressed(vmlinux, Digest.of(data)) == compressed
