"""Disks made to take long: the reader visits each block of a tree once, and a walk and a search for a path have an end."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imagetool.ext4 import reader as reading
from imagetool.ext4.reader import Reader
from imagetool.look import inspection
from imagetool.tree.model import File, Layer, Tree
from rootdisk.errors import BadInput
from rootdisk.ext4 import format as f
from rootdisk.ext4.format import FILE_MAX_BYTES
from tests.support import disks
from tests.support.steps import LINEAR, growth
from tests.support.tars import directory, file, hard_link, pax, symlink


class Ones:
    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        for buffer in buffers:
            buffer[:] = b"\1" * len(buffer)


def scattered(count: int) -> Tree:
    """A file of so many extents."""
    segments = tuple((n * 8192, n * 4096, 4096) for n in range(count))
    node = File(stat.S_IFREG | 0o644, layer=0, size=count * 8192, offset=0, segments=segments)
    tree = Tree(layers=[Layer("sha256:0", [node])])
    tree.root.children[b"f"] = node
    return tree


def test_a_tree_whose_nodes_lead_to_one_block(tmp_path: Path) -> None:
    """340 entries a node, each the same child, four deep, would be thirteen thousand million extents."""
    path = disks.write(tmp_path / "disk", scattered(2000), [Ones()], 64 << 20)
    with Reader.open(path) as disk:
        node = disk.lookup(b"/f")
    magic, _, _, depth, _ = f.EXTENT_HEADER.unpack_from(node.block)
    assert (magic, depth) == (f.EXT4_EXT_MAGIC, 2)
    many = node.block[:2] + struct.pack("<HHHI", 4, 4, depth, 0) + node.block[12:24] * 4
    with Reader.open(path) as disk:
        forged = reading.Node(**{name: getattr(node, name) for name in node.__slots__} | {"block": many})
        with pytest.raises(BadInput, match="wrong extent tree"):
            disk.extents(forged)


def test_a_walk_reads_only_what_is_wanted(tmp_path: Path) -> None:
    """What is left out has its place in the order, and directories are gone into; mode and size are those of the inode."""
    layer = directory(b"d") + file(b"d/a", b"x" * 300, mode=0o755) + file(b"d/b") + symlink(b"d/c", b"a") + file(b"e")
    with Reader.open(disks.disk_of(tmp_path / "disk", layer)) as disk:
        whole = list(disk.walk())
        numbers = {path: node.number for path, node in whole}
        asked: list[bytes] = []

        def wants(name: bytes, number: int, kind: int) -> bool:
            asked.append(name)
            mode, size = disk.glance(number)
            assert stat.S_ISREG(mode) is (kind == f.FT_REG_FILE)
            return size == 300

        found = list(disk.walk(wants=wants))
        kept = [item for item in whole if item[1].type == stat.S_IFDIR or item[0] == b"/d/a"]
        assert found == kept
        assert {b"a", b"b", b"c", b"e"} <= set(asked)
        assert b"d" not in asked
        node = disk.node(numbers[b"/d/a"])
        assert disk.glance(node.number) == (node.mode, node.size)


def test_extents_and_indexed_directories_cost_what_there_is(tmp_path: Path) -> None:
    def extents(count: int) -> Callable[[], object]:
        disk = Reader.open(disks.write(tmp_path / f"x{count}", scattered(count), [Ones()], 256 << 20))
        return lambda: disk.extents(disk.lookup(b"/f"))

    def names(count: int) -> Callable[[], object]:
        layer = directory(b"d") + b"".join(file(b"d/" + b"n" * 90 + b"%d" % n) for n in range(count))
        disk = Reader.open(disks.disk_of(tmp_path / f"d{count}", layer))
        return lambda: list(disk.walk())

    assert growth(extents, 1000) < LINEAR
    assert growth(names, 400) < LINEAR


def test_a_path_through_links_is_searched_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "NAMES_MAX_COUNT", 1000)
    layer = b"".join(file(b"%d" % n) for n in range(100)) + directory(b"z")
    layer += pax([(b"linkpath", b"z/../" * 100 + b"5")]) + symlink(b"l", b"x")
    with Reader.open(disks.disk_of(tmp_path / "disk", layer)) as disk:
        assert disk.lookup(b"/5").type == stat.S_IFREG
        with pytest.raises(BadInput, match="more than 1000 names on its way"):
            disk.lookup(b"/l", follow=True)


def test_a_walk_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = disks.disk_of(tmp_path / "disk", b"".join(file(b"%d/f" % n) for n in range(30)))
    with Reader.open(path) as disk:
        assert len(list(disk.walk())) == 61
        monkeypatch.setattr(reading, "NAMES_MAX_COUNT", 50)
        with pytest.raises(BadInput, match="more than 50 names on the disk"):
            list(disk.walk())


def test_a_file_of_many_names_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def layer(byte: bytes) -> bytes:
        return file(b"0", byte * 9000) + b"".join(hard_link(b"%d" % n, b"0") for n in range(1, 50))

    disk_a, disk_b = disks.disk_of(tmp_path / "a", layer(b"a")), disks.disk_of(tmp_path / "b", layer(b"b"))
    hashed: list[int] = []
    digest = inspection.digest
    monkeypatch.setattr(inspection, "digest", lambda reader, node: hashed.append(node.number) or digest(reader, node))  # type: ignore[func-returns-value]
    with Reader.open(disk_a) as a, Reader.open(disk_b) as b:
        changes = list(inspection.compared(inspection.InspectedDisk(a), inspection.InspectedDisk(b)))
    assert len([change for change in changes if "sha256" in change.what]) == 50
    assert len(hashed) == 2


def test_sixteen_tebibytes_of_a_hole_are_hashed_at_once(tmp_path: Path) -> None:
    def disk(name: str, at: int) -> Path:
        node = File(stat.S_IFREG, layer=0, size=FILE_MAX_BYTES, offset=0, segments=((at, 0, 4),))
        tree = Tree(layers=[Layer("sha256:0", [node])])
        tree.root.children[b"f"] = node
        return disks.write(tmp_path / name, tree, [Ones()])

    with Reader.open(disk("a", 0)) as a, Reader.open(disk("b", 8192)) as b:
        assert "sha256" not in inspection.details(inspection.InspectedDisk(a), b"/f")
        assert len(inspection.details(inspection.InspectedDisk(a), b"/f")["sha256_of_data"]) == 64
        (change,) = inspection.compared(inspection.InspectedDisk(a), inspection.InspectedDisk(b))
        assert change.what.keys() == {"sha256_of_data"}


def test_numbers_of_accounts_that_are_none(tmp_path: Path) -> None:
    layer = file(b"etc/passwd", b"a:x:" + b"9" * 5000 + b":\nb:x:0:0\n") + file(b"f")
    with Reader.open(disks.disk_of(tmp_path / "disk", layer)) as disk:
        assert inspection.details(inspection.InspectedDisk(disk), b"/f")["user"] == "b"
