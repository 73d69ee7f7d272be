"""The qcow2 writer, read again by qemu-img."""

from __future__ import annotations

import io
import json
import random
import subprocess
from pathlib import Path

import pytest

from imagetool.export.qcow2 import CLUSTER_BYTES, write_qcow2


def qemu_img(*arguments: str) -> str:
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", range(2))
def test_qemu_img_reads_the_same_disk(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    disk = bytearray((source.randrange(1, 1200) * CLUSTER_BYTES) + 512 * source.randrange(128))
    pieces = []
    at = 0
    while at < len(disk):
        data = source.choice([source.randbytes(source.randrange(1, 200_000)), bytes(source.randrange(1, 500_000))])
        data = data[: len(disk) - at]
        if any(data) or source.random() < 0.5:  # zeros may be said, or left out
            pieces.append((at, data))
        disk[at : at + len(data)] = data
        at += len(data)
    with (tmp_path / "a.qcow2").open("wb") as file:
        write_qcow2(file, len(disk), pieces)
    qemu_img("check", "-f", "qcow2", str(tmp_path / "a.qcow2"))
    info = json.loads(qemu_img("info", "--output=json", str(tmp_path / "a.qcow2")))
    assert info["format"] == "qcow2"
    assert info["virtual-size"] == len(disk) + -len(disk) % 512
    assert "backing-filename" not in info
    qemu_img("convert", "-f", "qcow2", "-O", "raw", str(tmp_path / "a.qcow2"), str(tmp_path / "a.raw"))
    assert (tmp_path / "a.raw").read_bytes()[: len(disk)] == disk


def test_a_huge_disk_takes_only_what_it_holds(tmp_path: Path) -> None:
    size = 16 << 40
    with (tmp_path / "a.qcow2").open("wb") as file:
        write_qcow2(file, size, [(0, b"a" * 5), (size - 512, b"z" * 512)])
    qemu_img("check", "-f", "qcow2", str(tmp_path / "a.qcow2"))
    assert (tmp_path / "a.qcow2").stat().st_size < 1 << 20


def test_zeros_take_nothing() -> None:
    with_zeros, without = io.BytesIO(), io.BytesIO()
    write_qcow2(with_zeros, 8 << 30, [(0, bytes(1 << 20)), (5 << 20, b"x")])
    write_qcow2(without, 8 << 30, [(5 << 20, b"x")])
    assert with_zeros.getvalue() == without.getvalue()
