"""Disks made larger without resize2fs, judged by e2fsck and the kernel."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rootdisk.errors import BadInput, Unsupported
from rootdisk.ext4.checksum import crc, table_crc
from runner.disk import grow
from runner.disk.base import BaseFile
from runner.disk.clone import clone
from tests.support.disks import complaints, debugfs, disk_of, host_view, mounted, needs_e2fsck, needs_root
from tests.support.tars import file

MIB, GIB = 1 << 20, 1 << 30
CONTENT = file(b"small", b"x" * 5000) + file(b"large", bytes(range(256)) * (12 << 10))


def made(tmp_path: Path, size: int) -> Path:
    return disk_of(tmp_path / "base", CONTENT, size=size)


def grown(base: Path, size: int) -> Path:
    folder = base.with_name(f"grown-{size}")
    folder.mkdir()
    return clone(base, size, folder, "copy", grow.patches(base, size)).path


def blocks(disk: Path) -> int:
    return int(debugfs(disk, "show_super_stats -h").partition("Block count:")[2].split()[0])


@needs_e2fsck
@pytest.mark.parametrize(
    ("before", "sizes"),
    [
        # within the last group; a second group; a flex group further; backups behind the first descriptor block
        (64 * MIB, (64 * MIB + 4096, 100 * MIB + 12288, 300 * MIB, 3 * GIB, 9 * GIB + 700 * 4096, 64 * GIB)),
        # the last group partial, room for more descriptors behind the superblock
        (4 * GIB + 12345 * 4096, (4 * GIB + 12346 * 4096, 5 * GIB, 8 * GIB, 8 * GIB + 128 * MIB, 500 * GIB)),
        # the usual: the descriptors' block is full
        (8 * GIB, (8 * GIB + 10 * MIB, 9 * GIB, 16 * GIB, 64 * GIB, 500 * GIB, 1024 * GIB + 4096)),
        # two blocks of descriptors, the second partial
        (12 * GIB, (13 * GIB, 16 * GIB, 17 * GIB, 33 * GIB)),
    ],
)
def test_e2fsck_has_nothing_to_say(tmp_path: Path, before: int, sizes: tuple[int, ...]) -> None:
    base = made(tmp_path, before)
    for size in sizes:
        disk = grown(base, size)
        assert complaints(disk) == [], size
        # all but what a last group too small for itself would have
        assert size // 4096 - 2048 - 70 < blocks(disk) <= size // 4096
        disk.unlink()


@needs_e2fsck
@pytest.mark.nightly
@pytest.mark.parametrize(
    "before", [16 * MIB, 127 * MIB + 4096, 128 * MIB, 700 * MIB, 2 * GIB, 8 * GIB, 20 * GIB + 4096]
)
def test_many_sizes(tmp_path: Path, before: int) -> None:
    base = made(tmp_path, before)
    size = before + 4096
    while size < 300 * GIB:
        disk = grown(base, size)
        assert complaints(disk) == [], size
        disk.unlink()
        size += (size // 7) // 4096 * 4096 + 5 * 4096


@needs_e2fsck
def test_a_checker_that_can_fail(tmp_path: Path) -> None:
    """A descriptor with a wrong checksum, a bitmap with a wrong bit: e2fsck sees either."""
    base = made(tmp_path, 64 * MIB)
    found = grow.patches(base, GIB)
    # e2fsck does not read backups
    read = [place for place in found if place < 128 * MIB or place % (128 * MIB) not in (0, 4096)]
    assert len(read) == 4  # superblock, descriptors, bitmaps of the once and the now last group
    for place in read:
        data = found[place]
        damaged = {**found, place: data[:66] + bytes([data[66] ^ 1]) + data[67:]}
        folder = tmp_path / str(place)
        folder.mkdir()
        assert complaints(clone(base, GIB, folder, "copy", damaged).path), place


@needs_e2fsck
@needs_root
@pytest.mark.root
@pytest.mark.parametrize("size", [1024 * MIB + 4096, 20 * GIB])
def test_the_kernel_fills_it(tmp_path: Path, size: int) -> None:
    """All files are there, the new space can be filled past the old end, and e2fsck agrees afterwards."""
    base = made(tmp_path, 300 * MIB)
    disk = grown(base, size)
    with mounted(base) as place:
        expected = host_view(place)
    with mounted(disk, "rw") as place:
        assert expected.differences(host_view(place)) == []
        room = os.statvfs(place)
        assert room.f_blocks * 4096 > size * 0.95
        with (place / "filled").open("wb") as filled:
            os.posix_fallocate(filled.fileno(), 0, room.f_bfree * 4096 * 9 // 10)
            os.pwrite(filled.fileno(), b"the end", room.f_bfree * 4096 * 9 // 10 - 7)
        inodes = os.statvfs(place).f_ffree
        (place / "many").mkdir()
        for number in range(3000):
            (place / "many" / str(number)).mkdir()
        assert os.statvfs(place).f_ffree == inodes - 3001
    assert complaints(disk) == []


def test_nothing_to_do(tmp_path: Path) -> None:
    base = made(tmp_path, 256 * MIB)
    assert grow.patches(base, 256 * MIB) == {}
    assert grow.patches(base, 256 * MIB + MIB) == {}  # a group that could only hold itself


@pytest.mark.parametrize("size", [64 * MIB - 4096, 0, (16 << 40) + 4096])
def test_other_sizes_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(
        BadInput, match=r"^--disk-size: .*: write 64MiB, which the artifact's disk has, to 16TiB, as 20g$"
    ):
        grow.patches(made(tmp_path, 64 * MIB), size)


def test_the_largest(tmp_path: Path) -> None:
    found = grow.patches(made(tmp_path, 8 * GIB), 16 << 40)
    raw = found[1024]
    assert struct.unpack_from("<I", raw, 4) + struct.unpack_from("<I", raw, 0x150) == (0, 1)  # 2^32 blocks
    assert max(place + len(data) for place, data in found.items()) <= 16 << 40


def test_descriptors_are_made_bit_by_bit(tmp_path: Path) -> None:
    """The quick way makes what the plain one does."""
    disk = BaseFile(made(tmp_path, 8 * GIB))
    base = grow._read(disk)
    disk.close()
    make = grow._Maker(base)
    for group in (64, 127, 128, 255, 65535, 131071):
        for fixed in (0, 1, 2):
            start, used = group * 32768 + fixed, fixed + 2 + base.table_blocks
            plain = grow._empty_group(start, 32768 - used, base.inodes_per_group, 7)
            assert make(group, fixed) == plain.pack(base.seed, group)


def test_it_needs_no_library(tmp_path: Path) -> None:
    """The runner is installed without google-crc32c. The patches are the same."""
    base = made(tmp_path, 64 * MIB)
    code = (
        "import sys, hashlib, pathlib; sys.modules['google_crc32c'] = None\n"
        "from runner.disk import grow; from rootdisk.ext4 import checksum\n"
        "assert checksum.crc is checksum.table_crc\n"
        "print(hashlib.sha256(repr(grow.patches(pathlib.Path(sys.argv[1]), 1 << 40)).encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, base], capture_output=True, text=True)
    patches = hashlib.sha256(repr(grow.patches(base, 1 << 40)).encode()).hexdigest()
    assert (done.stderr, done.stdout) == ("", patches + "\n")


def test_our_checksum_is_the_library_s() -> None:
    data = os.urandom(300)
    assert crc is not table_crc
    assert table_crc(0xFFFF_FFFF, data) == crc(0xFFFF_FFFF, data)


@pytest.mark.parametrize(
    ("place", "value", "error", "match"),
    [
        (0x38, b"\0\0", Unsupported, "magic"),
        (0x60, b"\xd2\x02", Unsupported, "s_feature_incompat is 0x2d2"),
        (0x3A, b"\0\0", Unsupported, "state"),
        (0x28, b"\x01\0\0\0", BadInput, "superblock is damaged"),
        (0x04, b"\xff\xff\xff\xff", BadInput, "superblock is damaged"),
        (0x10, b"\xff\xff\xff\xff", BadInput, "superblock is damaged"),
        (0x158, b"\xff\xff\xff\xff", BadInput, "superblock is damaged"),
        (0x68, b"other", BadInput, "superblock is damaged"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sealed", [False, True])
def test_other_disks_are_refused(
    tmp_path: Path, place: int, value: bytes, error: type[BadInput], match: str, sealed: bool
) -> None:
    """Whether or not a checksum was made for what is wrong."""
    base = made(tmp_path, 64 * MIB)
    with base.open("r+b") as disk:
        raw = bytearray(os.pread(disk.fileno(), 1024, 1024))
        raw[place : place + len(value)] = value
        if sealed:
            struct.pack_into("<I", raw, 0x3FC, crc(0xFFFF_FFFF, raw[:0x3FC]))
        os.pwrite(disk.fileno(), raw, 1024)
    if sealed and place == 0x68:
        match = "group descriptors are damaged"
    with pytest.raises(error, match=match):
        grow.patches(base, GIB)


@pytest.mark.parametrize(("place", "what"), [(4096 + 2, "group descriptors"), (-1, "block bitmap")])
def test_damage_is_seen(tmp_path: Path, place: int, what: str) -> None:
    base = made(tmp_path, 64 * MIB)
    with base.open("r+b") as disk:
        if place < 0:
            place = struct.unpack("<I", os.pread(disk.fileno(), 4, 4096))[0] * 4096 + 100
        byte = os.pread(disk.fileno(), 1, place)
        os.pwrite(disk.fileno(), bytes([byte[0] ^ 1]), place)
    with pytest.raises(BadInput, match=f"the disk's {what} is damaged|the disk's {what} are damaged"):
        grow.patches(base, GIB)


def test_no_disk_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(Unsupported, match="the disk's s_magic is 0x0"):
        grow.patches(tmp_path / "empty", GIB)


def test_too_many_inodes(tmp_path: Path) -> None:
    """A small disk of many inodes has as many in each group."""
    base = made(tmp_path, 128 * MIB)
    with base.open("r+b") as disk:
        raw = bytearray(os.pread(disk.fileno(), 1024, 1024))
        struct.pack_into("<I", raw, 0, 32768)
        struct.pack_into("<I", raw, 0x28, 32768)
        struct.pack_into("<I", raw, 0x3FC, crc(0xFFFF_FFFF, raw[:0x3FC]))
        os.pwrite(disk.fileno(), raw, 1024)
    with pytest.raises(BadInput, match="too many inodes: use at most 16777088MiB"):
        grow.patches(base, 16 << 40)
