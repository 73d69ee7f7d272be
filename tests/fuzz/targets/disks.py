"""ext4 disks, as our reader reads them. An input is damage: which disk, then where and what, as in sandboxes.patch."""

from __future__ import annotations

import os
import struct
import subprocess
from functools import cache

from imagetool.ext4.reader import Reader
from rootdisk.errors import BadInput, RootdiskError
from tests.fuzz.target import Target, folder
from tests.support.disks import PATH


class Memory:
    """A disk in memory that counts what is read, to find readers that go on without end."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.size = len(data)
        self.read_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        assert self.read_bytes < 2000 * self.size, "it reads the disk again and again"
        data = bytes(self.data[offset : offset + length])
        if len(data) != length:
            raise BadInput("past the end")
        return data

    def close(self) -> None: ...


@cache
def _images() -> list[tuple[bytes, list[int]]]:
    """Small disks, mke2fs's without checksums so that damage gets past them, in two block sizes; and where something is."""
    tree = folder() / "tree"
    (tree / "d/e").mkdir(parents=True)
    for n in range(70):
        (tree / f"d/file-{n:03}").write_bytes(b"x" * n)
    (tree / "long").symlink_to("t" * 90)
    (tree / "short").symlink_to("d")
    os.link(tree / "d/file-001", tree / "hard")
    with (tree / "sparse").open("wb") as file:
        for n in range(8):
            file.seek(n * 20_000)
            file.write(b"data")
    for n in (10, 500):
        os.setxattr(tree / f"d/file-{n // 10:03}", "user.k", b"v" * n)
    found = []
    for block in (1024, 4096):
        path = folder() / f"disk-{block}"
        argv = ["mke2fs", "-q", "-t", "ext4", "-b", str(block), "-O", "^metadata_csum,^has_journal,^resize_inode"]
        argv += ["-N", "256", "-U", "00000000-0000-4000-8000-000000000000", "-d", str(tree), str(path), "1M"]
        subprocess.run(argv, check=True, env={"PATH": PATH, "E2FSPROGS_FAKE_TIME": "1"}, stdin=subprocess.DEVNULL)
        data = path.read_bytes()
        found.append((data, [at for at in range(1024, len(data), 512) if any(data[at : at + 512])]))
    return found


_PATCH = struct.Struct("<HHB")  # number of a piece with something in it, place in it, bytes that follow


def disk(data: bytes) -> None:
    if not data:
        raise BadInput("no damage")
    image, places = _images()[data[0] & 1]
    changed, at = bytearray(image), 1
    while at + _PATCH.size < len(data):
        number, place, size = _PATCH.unpack_from(data, at)
        piece = data[at + _PATCH.size : at + _PATCH.size + size]
        place = places[number % len(places)] + place % 512
        piece = piece[: len(changed) - place]
        changed[place : place + len(piece)] = piece
        at += _PATCH.size + size
    with Reader(Memory(changed)) as reader:
        for count, (_, node) in enumerate(reader.walk()):
            assert count < 100_000
            try:
                reader.read_through(node)
            except RootdiskError:
                continue


def damage() -> list[bytes]:
    """None, and of many pieces, so that superblock, descriptors, inodes, directories, extents and xattrs are among them."""
    found = [b"\0", b"\1"]
    for kind in (0, 1):
        for number in range(0, len(_images()[kind][1]), 7):
            found.append(bytes([kind]) + _PATCH.pack(number, number * 40, 4) + b"\xff\xff\xff\x7f")
    return found


TARGETS = {
    "ext4": Target(disk, damage, (b"\x0a\xf3", b"\x53\xef", b"\0\0\xea", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x01\0\0\0", b"\x0c\0"), few=150),
}  # fmt: skip
