"""Disks of our writer under e2fsck, the kernel, debugfs and our reader; one test a pitfall others have met."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest

from imagetool.ext4.htree import half_md4, seed_words
from imagetool.ext4.plan import DiskOptions, plan
from imagetool.ext4.reader import Reader
from imagetool.tree.model import BytesSource, Directory, File, Layer, Slot, Source, Symlink, Tree
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.ext4 import superblock
from tests.support import disks
from tests.support.disks import complaints, debugfs, disk_of, host_view, mounted, needs_e2fsck, needs_root, reader_view
from tests.support.tars import directory, file, hard_link, header, pax, symlink

pytestmark = needs_e2fsck
GIB = 1 << 30


def cap(permitted: int) -> bytes:
    """security.capability, version 2; include/uapi/linux/capability.h."""
    return struct.pack("<IIIII", 0x02000001, permitted, 0, 0, 0)


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFF_FFFF
ACL = acl((1, 7, NOBODY), (2, 5, 70000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY))


def xattrs(**values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"SCHILY.xattr." + name.replace("__", ".").encode(), value) for name, value in values.items()]


EVERYTHING = (
    directory(b"./", 0o755, mtime=77)
    + directory(b"d", 0o1777, uid=5, gid=6)
    + file(b"d/suid", b"x" * 5000, mode=0o6755, uid=70000, gid=4_000_000_000, mtime=-100)
    + hard_link(b"h", b"d/suid", mode=0o6755, uid=70000, gid=4_000_000_000, mtime=-100)
    + file(b"empty")
    + file(b"zero-mode", b"secret", mode=0)
    + symlink(b"short", b"d/suid")
    + symlink(b"fifty-nine", b"t" * 59)
    + symlink(b"sixty", b"t" * 60)
    + pax([(b"linkpath", b"long/" * 800)])
    + symlink(b"long", b"x")
    + hard_link(b"short-too", b"short")
    + file(b"\xff\xfe\x80", b"no text")
    + file("ünï".encode(), b"utf-8")
    + pax([(b"path", b"n" * 255)])
    + file(b"x", b"255")
    + pax(xattrs(user__k=b"v\0w", security__capability=cap(1 << 10), trusted__t=b"t"))
    + file(b"caps", b"1", mode=0o755)
    + pax(xattrs(user__big=b"b" * 3000, user__small=b"s"))
    + file(b"block", b"1")
    + pax(xattrs(user__big=b"b" * 3000, user__small=b"s"))
    + file(b"block-shared", b"2")
    + pax(xattrs(**{"user__" + "n" * 200: b"", "user__ü": b"non-ascii \xff name"}))
    + file(b"names", b"2")
    + pax(xattrs(user__ÿ=b"\xff" * 2000, user__ü=b"in a block, with a hash of its own"))
    + file(b"signs", b"3")
    + pax(xattrs(system__posix_acl_access=ACL))
    + file(b"acl", b"", mode=0o674)
    + pax(xattrs(system__posix_acl_access=ACL, system__posix_acl_default=ACL))
    + directory(b"acl-dir", mode=0o775)
    + pax(xattrs(trusted__link=b"on a link", security__selinux=b"system_u:object_r:bin_t:s0\0"))
    + symlink(b"labelled", b"target")
    + pax(xattrs(security__selinux=b"a device\0"))
    + header(b"null", b"3", mode=0o666, major=1, minor=3)
    + header(b"wide", b"4", mode=0o660, gid=6, major=259, minor=70000)
    + header(b"top", b"3", major=4095, minor=1048575)
    + header(b"zero", b"3", major=0, minor=0)
    + header(b"pipe", b"6", mode=0o622)
    + pax([(b"mtime", b"12.123456789")])
    + file(b"fraction", b"")
    + pax([(b"mtime", b"-1.5")])
    + file(b"before", b"")
    + file(b"after", b"", mtime=1 << 33)
    + pax([(b"GNU.sparse.size", b"10000000"), (b"GNU.sparse.map", b"5000,3,9000000,4")])
    + file(b"sparse", b"abcdefg")
    + pax([(b"GNU.sparse.size", b"5000000"), (b"GNU.sparse.map", b"")])
    + file(b"only-hole", b"")
    + file(b"big", bytes(range(256)) * 6000)
)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disk_of(tmp_path_factory.mktemp("everything") / "disk", EVERYTHING)


def test_e2fsck_has_nothing_to_say(everything: Path) -> None:
    assert complaints(everything) == []


@pytest.mark.root
@needs_root
def test_the_kernel_sees_what_our_reader_sees(everything: Path) -> None:
    with mounted(everything) as place, Reader.open(everything) as disk:
        kernel, reader = host_view(place), reader_view(disk)
    assert kernel.differences(reader) == []
    records = reader.records
    assert records["/d/suid"][:4] == (stat.S_IFREG | 0o6755, 70000, 4_000_000_000, -100 * 10**9)
    assert dict(records["/caps"][5]) == {  # type: ignore[call-overload]
        b"user.k": b"v\0w", b"security.capability": cap(1 << 10), b"trusted.t": b"t"
    }  # fmt: skip
    assert dict(records["/acl-dir"][5])[b"system.posix_acl_default"] == ACL  # type: ignore[call-overload]
    assert dict(records["/labelled"][5])[b"trusted.link"] == b"on a link"  # type: ignore[call-overload]
    assert dict(records["/names"][5])[b"user." + "ü".encode()] == b"non-ascii \xff name"  # type: ignore[call-overload]
    assert records["/wide"][4] == (259, 70000)
    assert records["/top"][4] == (4095, 1048575)
    assert [records[f"/{name}"][3] for name in ("fraction", "before", "after")] == [
        12_123_456_789, -1_500_000_000, (1 << 33) * 10**9
    ]  # fmt: skip
    assert ["/d/suid", "/h"] in reader.groups
    assert ["/short", "/short-too"] in reader.groups


def test_holes_are_no_blocks(everything: Path) -> None:
    with Reader.open(everything) as disk:
        assert sum(len(data) for _, data in disk.data(disk.lookup(b"/sparse"))) <= 3 * 4096
        assert disk.lookup(b"/only-hole").blocks == 0
        block, shared = (disk.lookup(path) for path in (b"/block", b"/block-shared"))
        assert block.xattr_block == shared.xattr_block != 0


def test_a_checker_that_can_fail(everything: Path, tmp_path: Path) -> None:
    """Wrong free counts and checksums: e2fsck exits with 0 and complains, and our view shows a changed byte."""
    data = bytearray(everything.read_bytes())
    data[1024 + 12] ^= 1  # s_free_blocks_count_lo, and with it the superblock's checksum
    (tmp_path / "damaged").write_bytes(data)
    assert complaints(tmp_path / "damaged")
    with pytest.raises(BadInput, match="superblock: wrong checksum"):
        Reader.open(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("path", "part"), [("d", "directory"), ("big", "inode"), ("block", "extended attributes"), ("sixty", "")]
)
def test_our_reader_compares_checksums(everything: Path, tmp_path: Path, path: str, part: str) -> None:
    with Reader.open(everything) as disk:
        node = disk.lookup(path.encode())
        if part == "inode":
            group, place = divmod(node.number - 1, disk.inodes_per_group)
            offset = disk._descriptor(group)[2] * 4096 + place * 256 + 4
        elif part == "extended attributes":
            offset = node.xattr_block * 4096 + 100
        else:
            offset = disk.extents(node)[0].physical * 4096 + 12
    data = bytearray(everything.read_bytes())
    data[offset] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    with Reader.open(tmp_path / "damaged") as disk:
        if not part:  # a long link target is data: it has no checksum
            assert disk.target(disk.lookup(b"/sixty")) != b"t" * 60
            return
        with pytest.raises(BadInput, match=part):
            reader_view(disk)


def test_same_bytes_again(tmp_path: Path) -> None:
    assert disk_of(tmp_path / "a", EVERYTHING).read_bytes() == disk_of(tmp_path / "b", EVERYTHING).read_bytes()


def names(count: int, pattern: str = "file-%06d") -> bytes:
    return b"".join(file(b"many/" + (pattern % n).encode(), b"") for n in range(count))


@pytest.mark.parametrize("count", [300, 5_000, 90_000])
def test_indexed_directories(tmp_path: Path, count: int) -> None:
    """One leaf, one level, two levels of index; every name found by its hash."""
    path = disk_of(tmp_path / "disk", names(count), size=512 << 20)
    assert complaints(path) == []
    info = debugfs(path, "stat /many")
    assert "Flags: 0x81000" in info  # EXTENTS | INDEX
    levels = debugfs(path, "htree_dump /many").partition("Indirect levels:")[2].split()[0]
    assert levels == ("1" if count > 77_000 else "0")
    with Reader.open(path) as disk:
        assert len(list(disk.entries(disk.lookup(b"/many")))) == count
    if os.geteuid() == 0:
        with mounted(path) as place:
            for n in (*range(0, count, max(1, count // 500)), count - 1):
                assert (place / f"many/file-{n:06}").exists()
            assert not (place / "many/file-x").exists()


def test_hash_is_debugfs_s(everything: Path) -> None:
    with Reader.open(everything) as disk:
        seed: bytes = superblock.unpack(disk.device.read(1024, 1024))["s_hash_seed"]
    uuid = str(UUID(bytes=seed))
    for name in ["a", "x" * 32, "y" * 33, "long " * 50, "ünïcödé", "tab\there"]:
        said = debugfs(everything, f'dx_hash -h half_md4 -s {uuid} "{name}"')
        # debugfs hashes unsigned by default, as ASCII: the same for both
        if name.isascii():
            assert f"0x{half_md4([name.encode()], seed_words(seed))[0][0]:08x}" in said


def test_hashes_of_many_names_are_those_of_each() -> None:
    """Of one to three parts, and with bytes past ASCII; the digest is of what a plain transform of one name at a time gave."""
    seed = seed_words(bytes(range(16)))
    many = [b"%d-" % n + bytes((n * 7 + k * k * 5) % 255 + 1 for k in range(n % 90)) for n in range(3000)]
    together = half_md4(many, seed)
    assert together == sorted(pair for name in many for pair in half_md4([name], seed))
    digest = hashlib.sha256(repr(together).encode()).hexdigest()
    assert digest == "3e818b25e539aa6708bcd32d605f42d2be0f049da97b5a81398fb25757a1e344"
    assert half_md4([], seed) == []


@pytest.mark.root
@needs_root
def test_names_that_are_not_ascii_are_found_in_an_index(tmp_path: Path) -> None:
    """Hashes are of signed bytes, said in s_flags: the kernel looks names up by them."""
    path = disk_of(tmp_path / "disk", names(2000, "ünïcödé-%06d-ÿ"))
    assert complaints(path) == []
    with mounted(path) as place:
        assert all((place / f"many/ünïcödé-{n:06}-ÿ").exists() for n in range(2000))


def one_file(size: int, segments: tuple[tuple[int, int, int], ...] | None = None) -> tuple[Tree, list[Source]]:
    node = File(stat.S_IFREG | 0o644, layer=0, size=size, offset=0, segments=segments)
    tree = Tree(layers=[Layer("sha256:0", [node])])
    tree.root.children[b"file"] = node
    return tree, [Endless()]


class Endless:
    """A source of any size whose bytes name their offset, 8 bytes each."""

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        for buffer in buffers:
            assert offset % 8 == 0
            count = -(-len(buffer) // 8)
            buffer[:] = struct.pack(f"<{count}Q", *range(offset // 8, offset // 8 + count))[: len(buffer)]
            offset += len(buffer)


def test_a_file_across_backup_groups(tmp_path: Path) -> None:
    """600 MiB in more than four extents: a tree block with its checksum, and every byte where it belongs."""
    tree, sources = one_file(600 << 20)
    path = disks.write(tmp_path / "disk", tree, sources, GIB)
    assert complaints(path) == []
    with Reader.open(path) as disk:
        node = disk.lookup(b"/file")
        assert len(disk.extents(node)) > 4
        expected = 0
        for offset, data in disk.data(node):
            assert offset == expected
            assert struct.unpack_from("<Q", data)[0] == offset // 8
            assert struct.unpack_from("<Q", data, len(data) - 8)[0] == (offset + len(data)) // 8 - 1
            expected += len(data)
        assert expected == 600 << 20


@needs_root
def test_a_backup_mends_the_disk(tmp_path: Path) -> None:
    """Backups say what an empty file system would; e2fsck finds everything from each of them nevertheless."""
    path = disk_of(tmp_path / "disk", EVERYTHING, directory(b"lost+found"), size=GIB)
    with mounted(path) as place:
        before = host_view(place)
    for group in (1, 3, 5, 7):
        with path.open("r+b") as raw:
            raw.write(b"\xa5" * (2 * 4096))
        assert complaints(path) != []
        command = ["e2fsck", "-fy", "-B", "4096", "-b", str(group * 32768), str(path)]
        done = subprocess.run(command, env={"PATH": disks.PATH}, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout  # errors corrected
        assert complaints(path) == []
        with mounted(path) as place:
            assert host_view(place).differences(before) == []


@pytest.mark.parametrize("parts", [4, 5, 340, 341, 340 * 4, 340 * 4 + 1, 120_000])
def test_extent_trees_of_sparse_files(tmp_path: Path, parts: int) -> None:
    """One block in every eight of a file: trees of depth 0 to 2, leaf boundaries included."""
    step = 8 * 4096
    segments = tuple((n * step, n * 4096, 4096) for n in range(parts))
    tree, sources = one_file(parts * step, segments)
    path = disks.write(tmp_path / "disk", tree, sources, 2 * GIB)
    assert complaints(path) == []
    with Reader.open(path) as disk:
        node = disk.lookup(b"/file")
        found = disk.extents(node)
        assert [extent.logical for extent in found] == [8 * n for n in range(parts)]
        for offset, data in list(disk.data(node))[:: max(1, parts // 100)]:
            assert struct.unpack_from("<Q", data)[0] == offset // step * 4096 // 8


@pytest.mark.root
@needs_root
def test_fifty_gibibytes_sparse(tmp_path: Path) -> None:
    """A file past 42.5 GiB in 128 MiB extents with a hole between each two: others' offsets went wrong in its second leaf."""
    size, part = 50 * GIB, 128 << 20
    segments = tuple((at, at, 4096) for at in range(0, size, part))
    tree, sources = one_file(size, segments)
    path = disks.write(tmp_path / "disk", tree, sources, 8 * GIB)
    assert complaints(path) == []
    with mounted(path) as place, open(place / "file", "rb") as found:
        assert os.fstat(found.fileno()).st_size == size
        for at, _, _ in segments:
            assert struct.unpack("<Q", os.pread(found.fileno(), 8, at)) == (at // 8,)
            assert os.pread(found.fileno(), 8, at + 4096) == bytes(8)


def test_many_subdirectories(tmp_path: Path) -> None:
    """Past 64,998 a directory's link count is 1: dir_nlink."""
    tree = Tree(layers=[Layer("sha256:0")])
    tree.root.children = {b"%06d" % n: Directory() for n in range(70_000)}
    path = disks.write(tmp_path / "disk", tree, [BytesSource(b"")], GIB)
    assert complaints(path) == []
    with Reader.open(path) as disk:
        assert disk.root.links == 1


def test_hard_links_to_the_limit(tmp_path: Path) -> None:
    node = File(stat.S_IFREG | 0o644, layer=0, size=0, offset=0)
    tree = Tree(layers=[Layer("sha256:0", [node])])
    tree.root.children = {b"%05d" % n: node for n in range(65_000)}
    path = disks.write(tmp_path / "disk", tree, [BytesSource(b"")])
    assert complaints(path) == []
    tree.root.children[b"one more"] = node
    with pytest.raises(BadInput, match="/one more: more than 65000 hard links"):
        plan(tree, DiskOptions(64 << 20, disks.UUID))


def test_five_thousand_deep(tmp_path: Path) -> None:
    path = disk_of(tmp_path / "disk", pax([(b"path", b"d/" * 5000 + b"f")]) + file(b"x", b"deep"), size=128 << 20)
    assert complaints(path) == []
    with Reader.open(path) as disk:
        assert disk.lookup(b"d/" * 5000 + b"f").size == 4


@pytest.mark.parametrize(
    ("size", "groups"),
    [(16 << 20, 1), (64 << 20, 1), (130 << 20, 2), (200 << 20, 2), (GIB + 4096, 8), (8 * GIB, 64), (64 * GIB, 512)],
)
def test_sizes(tmp_path: Path, size: int, groups: int) -> None:
    path = disk_of(tmp_path / "disk", file(b"a", b"x" * 10000), size=size)
    assert complaints(path) == []
    assert path.stat().st_blocks * 512 < (2 << 20) + size // 2000
    with Reader.open(path) as disk:
        assert disk.groups == groups
        assert disk.free_inodes >= 1000


@pytest.mark.parametrize("size", [15 << 20, (16 << 40) + 4096])
def test_sizes_that_are_none(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadInput, match="a disk is 16 MiB to 16 TiB"):
        disk_of(tmp_path / "disk", b"", size=size)


@pytest.mark.parametrize("data", [41 << 20, 100 << 20, 124 << 20, 700 << 20])
def test_the_size_an_error_names_will_do(data: int) -> None:
    tree, _ = one_file(data)
    with pytest.raises(BadInput, match=r"does not fit into 16 MiB: it needs (\d+) MiB") as found:
        plan(tree, DiskOptions(16 << 20, disks.UUID))
    needed = int(str(found.value).split("it needs ")[1].split()[0])
    assert plan(tree, DiskOptions(needed << 20, disks.UUID)).free_bytes >= 0
    with pytest.raises(BadInput, match=f"it needs {needed} MiB"):  # the least that works
        plan(tree, DiskOptions((needed - 1) << 20, disks.UUID))


def test_the_size_an_error_names_will_do_for_many_inodes() -> None:
    tree, _ = disks.tree_of(b"".join(header(b"f%d" % n, b"6") for n in range(33_000)))
    with pytest.raises(BadInput, match=r"it needs (\d+) MiB") as found:
        plan(tree, DiskOptions(64 << 20, disks.UUID))
    needed = int(str(found.value).split("it needs ")[1].split()[0])
    assert needed < 140
    with pytest.raises(BadInput, match=f"it needs {needed} MiB"):
        plan(tree, DiskOptions((needed - 1) << 20, disks.UUID))


def test_room_for_the_guest_s_own_files(tmp_path: Path) -> None:
    path = disk_of(tmp_path / "disk", names(5000), size=64 << 20)
    with Reader.open(path) as disk:
        assert disk.free_inodes >= 1500


@pytest.mark.parametrize(
    ("xattr", "words"),
    [
        ({b"user.big": b"x" * 5000}, "/f: 5"),
        ({b"os2.x": b"1"}, "no such namespace"),
        ({b"system.posix_acl_access": b"text"}, "POSIX ACL"),
        ({b"user." + b"n" * 256: b""}, "longer than 255"),
    ],
)
def test_xattrs_that_ext4_cannot_hold(xattr: dict[bytes, bytes], words: str) -> None:
    tree, _ = one_file(0)
    tree.root.children = {b"f": tree.root.children[b"file"]}
    tree.root.children[b"f"].xattrs = xattr
    with pytest.raises(RootdiskError, match="/f: ") as found:
        plan(tree, DiskOptions(64 << 20, disks.UUID))
    assert words in str(found.value)


@pytest.mark.parametrize("seconds", [-(1 << 31) - 1, (1 << 31) + 3 * (1 << 32)])
def test_times_that_ext4_cannot_hold(seconds: int) -> None:
    tree, _ = one_file(0)
    tree.root.children[b"file"].mtime_ns = seconds * 10**9
    with pytest.raises(BadInput, match=f"{seconds} s, which ext4 cannot hold"):
        plan(tree, DiskOptions(64 << 20, disks.UUID))


def test_a_link_target_that_is_too_long() -> None:
    tree = Tree(layers=[Layer("sha256:0")])
    tree.root.children[b"l"] = Symlink(b"x" * 4096)
    with pytest.raises(BadInput, match="/l: a link target longer than 4095 bytes"):
        plan(tree, DiskOptions(64 << 20, disks.UUID))


def test_the_slot_is_one_aligned_extent(tmp_path: Path) -> None:
    tree = Tree(layers=[Layer("sha256:0")])
    tree.root.children[b"slot"] = Slot("slot", 256 << 10)
    made = plan(tree, DiskOptions(64 << 20, disks.UUID))
    path = disks.write(tmp_path / "disk", tree, [BytesSource(b"")])
    assert complaints(path) == []
    (slot,) = made.slots
    assert (slot.length, slot.offset % 65536) == (256 << 10, 0)
    with Reader.open(path) as disk:
        node = disk.lookup(b"/slot")
        (extent,) = disk.extents(node)
        assert (extent.physical * 4096, extent.count * 4096, extent.written) == (slot.offset, slot.length, True)
        assert node.flags & 0x10  # immutable
    with path.open("r+b") as file_:
        file_.seek(slot.offset)
        file_.write(b"filled" * 1000)
    assert complaints(path) == []
    assert debugfs(path, "cat /slot").startswith("filledfilled")


LOAD = r"""
set -e
cd "$1"
mkdir load
i=0
while [ $i -lt 400 ]; do
    d=load/$((i % 7)); mkdir -p $d
    head -c $((i * 137)) /dev/zero | tr '\0' x > $d/file-$i
    ln $d/file-$i $d/link-$i; mv $d/link-$i load/moved-$i
    [ $((i % 3)) != 0 ] || rm load/moved-$i
    [ $((i % 5)) != 0 ] || truncate -s 3000000 $d/file-$i
    i=$((i + 1))
done
for n in $(seq 3000); do : > many/new-$n; done
rm many/file-0000*
rm -rf load/3
dd if=/dev/zero of=big bs=64k count=16 seek=4 conv=notrunc status=none
fallocate -l 5M load/preallocated
printf more >> d/suid
sync
"""


@pytest.mark.root
@needs_root
def test_the_kernel_works_on_it(tmp_path: Path) -> None:
    """Writes, links, renames, deletions, then clean, and what was linked has changed under both names."""
    path = disk_of(tmp_path / "disk", EVERYTHING + names(3000), size=300 << 20)
    before = hashlib.sha256(b"x" * 5000).hexdigest()
    with mounted(path, "rw") as place:
        subprocess.run(["sh", "-c", LOAD, "sh", str(place)], check=True)
    assert complaints(path) == []
    with Reader.open(path) as disk:
        assert hashlib.sha256(b"".join(data for _, data in disk.data(disk.lookup(b"/h")))).hexdigest() != before
        assert len(list(disk.entries(disk.lookup(b"/many")))) == 5900


def test_what_others_write_is_read_too(tmp_path: Path) -> None:
    """mke2fs's own disks, of 1 and 4 KiB blocks, with and without checksums."""
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").write_bytes(b"data" * 5000)
    (tree / "l").symlink_to("t" * 70)
    for n in range(700):
        (tree / f"d/{n:05}").touch()
    for place in tree.rglob("*"):  # mke2fs -d drops fractions of seconds
        os.utime(place, (1, 1), follow_symlinks=False)
    for block, features in ((1024, "metadata_csum"), (4096, "metadata_csum"), (4096, "^metadata_csum,^64bit")):
        path = tmp_path / f"disk-{block}-{features}"
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-b", str(block), "-O", features, "-d", str(tree), str(path), "64M"],
            check=True, env={"PATH": disks.PATH}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        with Reader.open(path) as disk:
            view = reader_view(disk)
        found = {p: r for p, r in view.records.items() if p not in ("/", "/lost+found")}
        assert found == {p: r for p, r in host_view(tree).records.items() if p != "/"}


@pytest.mark.nightly
@pytest.mark.root
@needs_root
def test_a_million_names(tmp_path: Path) -> None:
    tree = Tree(layers=[Layer("sha256:0")])
    one = Directory()
    tree.root.children[b"many"] = one
    files = [File(stat.S_IFREG | 0o644, layer=0, size=0, offset=0) for _ in range(1_000_000)]
    tree.layers[0].files = files
    one.children = {b"entry-%07d" % n: files[n] for n in range(1_000_000)}
    path = disks.write(tmp_path / "disk", tree, [BytesSource(b"")], 8 * GIB)
    assert complaints(path) == []
    with mounted(path, "rw") as place:
        for n in range(0, 1_000_000, 997):
            assert (place / f"many/entry-{n:07}").exists()
        for n in range(20_000):
            (place / f"many/new-{n}").touch()
    assert complaints(path) == []


@pytest.mark.nightly
@pytest.mark.parametrize("size", [1 << 40, 16 << 40])
def test_huge_disks(size: int) -> None:
    """On tmpfs, since ext4 itself holds no file of 16 TiB."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        assert complaints(disk_of(Path(place, "disk"), file(b"a", b"x" * 10000), size=size)) == []
