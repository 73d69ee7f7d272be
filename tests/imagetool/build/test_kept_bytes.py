"""Bytes that are kept to save time: right or not there. A compressed vmlinux is one of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from imagetool.build.artifact import _compressed
from imagetool.build.kept_bytes import recall, remember
from imagetool.guest.boot_files import check_kernel
from imagetool.guest.programs import VMLINUX_KEPT, KernelReceipt
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


def test_a_vmlinux_that_is_kept_compressed_is_not_read(tmp_path: Path) -> None:
    made = KernelReceipt(Digest.of(b"kernel"), Digest.of(b"initramfs"), "", Digest.of(b"vmlinux"))
    for name in ("kernel", "initramfs", "vmlinux"):
        (tmp_path / name.replace("kernel", "vmlinuz")).write_bytes(name.encode())
    check_kernel(tmp_path, made)
    _compressed(tmp_path / "vmlinux", Digest.of(b"vmlinux"))
    (tmp_path / "vmlinux").write_bytes(b"other")
    check_kernel(tmp_path, made)
    with pytest.raises(Damaged, match="vmlinux"):  # of another kernel
        check_kernel(tmp_path, dataclasses.replace(made, vmlinux=Digest.of(b"newer")))
    kept = bytearray((tmp_path / VMLINUX_KEPT).read_bytes())
    kept[-1] ^= 1
    (tmp_path / VMLINUX_KEPT).write_bytes(kept)
    with pytest.raises(Damaged, match="vmlinux"):
        _compressed(tmp_path / "vmlinux", Digest.of(b"vmlinux"))
    with pytest.raises(Damaged, match="vmlinux"):  # so that the next build makes it again
        check_kernel(tmp_path, made)
