"""Our disk, mounted by the kernel and read by our reader, against what others unpack: no difference, to the inode."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagetool.ext4.reader import Reader
from tests.support.commands import ROOT, run
from tests.support.disks import (
    complaints,
    disk_of,
    host_view,
    mounted,
    needs_e2fsck,
    needs_root,
    reader_view,
    tree_of,
    tree_view,
    write,
)
from tests.support.layouts import write_layout
from tests.support.stacks import random_stack
from tests.support.tars import END, directory, file, hard_link, header, pax, symlink

pytestmark = [
    pytest.mark.root,
    needs_root,
    needs_e2fsck,
    pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed"),
]


def umoci(layout: Path, bundle: Path) -> Path:
    """The image `layout`:t unpacked by umoci; its root."""
    argv = ["umoci", "unpack", "--image", f"{layout}:t", str(bundle)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bundle / "rootfs"


def compare(tmp_path: Path, layers: list[bytes]) -> None:
    write_layout(tmp_path / "oci", "t", [layer + END for layer in layers], compression="plain")
    theirs = host_view(umoci(tmp_path / "oci", tmp_path / "bundle"))
    disk = disk_of(tmp_path / "disk", *layers)
    assert complaints(disk) == []
    with mounted(disk) as place, Reader.open(disk) as reader:
        kernel, ours = host_view(place), reader_view(reader)
    assert kernel.differences(theirs) == []
    assert ours.differences(kernel) == []


@pytest.mark.parametrize("seed", range(12))
def test_random_stacks(tmp_path: Path, seed: int) -> None:
    compare(tmp_path, random_stack(seed))


@given(st.integers(0, (1 << 64) - 1))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(seed: int) -> None:
    """Tree to disk to reader, and nothing is lost or added."""
    with tempfile.TemporaryDirectory() as place:
        tree, sources = tree_of(*random_stack(seed))
        with Reader.open(write(Path(place, "disk"), tree, sources)) as reader:
            assert tree_view(tree, sources).differences(reader_view(reader)) == []


@pytest.mark.nightly
def test_many_random_stacks(tmp_path: Path) -> None:
    for seed in range(1000, 1300):
        place = tmp_path / str(seed)
        place.mkdir()
        compare(place, random_stack(seed, entries=120))
        shutil.rmtree(place)


def test_a_comparison_that_can_fail(tmp_path: Path) -> None:
    """One byte, one owner, one time, one link, one attribute: each is a difference."""
    base = (
        file(b"f", b"data")
        + file(b"o", uid=1)
        + file(b"t", mtime=1)
        + file(b"l", b"1")
        + hard_link(b"m", b"l")
        + pax([(b"SCHILY.xattr.user.a", b"1")])
        + file(b"x")
    )
    changed = [
        base.replace(b"data", b"dotA"),
        file(b"f", b"data") + base,
        base + file(b"o", uid=2),
        base + file(b"t", mtime=2),
        base + file(b"m", b"1"),
        base + file(b"x"),
    ]
    views = []
    for number, layer in enumerate([base, *changed]):
        disk = disk_of(tmp_path / str(number), layer)
        with Reader.open(disk) as reader:
            views.append(reader_view(reader))
    assert [bool(views[0].differences(view)) for view in views] == [False, True, False, True, True, True, True]


def test_the_demo_image(demo: str, tmp_path: Path) -> None:
    """A real image of three layers: `imagetool disk --plain` against umoci."""
    source = ROOT / "cache/demo/source"
    done = run("imagetool", "disk", "--plain", "--size", "1GiB", f"oci:{source}:latest", str(tmp_path / "disk"))
    assert done.returncode == 0, done.stderr
    argv = ["umoci", "unpack", "--image", f"{source}:latest", str(tmp_path / "bundle")]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    theirs = host_view(tmp_path / "bundle/rootfs")
    assert len(theirs.records) > 5000
    with mounted(tmp_path / "disk") as place, Reader.open(tmp_path / "disk") as reader:
        assert host_view(place).differences(theirs) == []
        assert reader_view(reader).differences(theirs) == []


def test_an_overlay_mount(tmp_path: Path) -> None:
    """The layers unpacked by tar and stacked by the kernel's overlayfs, as containerd and Docker do."""
    layers = [
        directory(b"d", 0o750, uid=5)
        + file(b"d/gone", b"1")
        + file(b"d/kept", b"2" * 5000, uid=7)
        + directory(b"opaque")
        + file(b"opaque/old", b"3")
        + directory(b"replaced")
        + file(b"replaced/below", b"4")
        + file(b"becomes-directory", b"5")
        + header(b"null", b"3", mode=0o666, major=1, minor=3)
        + symlink(b"link", b"d/kept"),
        directory(b"d", 0o711, uid=6)
        + file(b"d/.wh.gone")
        + directory(b"opaque", 0o700)
        + file(b"opaque/.wh..wh..opq")
        + file(b"opaque/new", b"6")
        + file(b"replaced", b"a file now")
        + directory(b"becomes-directory")
        + file(b"becomes-directory/in", b"7")
        + file(b"pair", b"8")
        + hard_link(b"pair-too", b"pair"),
        file(b".wh.becomes-directory")
        + directory(b"d", 0o711, uid=6)
        + file(b"d/late", b"9", mode=0o4755)
        + file(b"null", b"no device"),
    ]
    backing = tmp_path / "backing"  # overlayfs wants a file system that is none itself
    backing.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(backing)], check=True)
    try:
        for number, layer in enumerate(layers):
            place = backing / str(number)
            place.mkdir()
            tar = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-", "-C", str(place)]
            subprocess.run(tar, input=layer + END, check=True)
            for path in sorted(place.rglob(".wh.*")):
                times = path.parent.stat()
                path.unlink()
                if path.name == ".wh..wh..opq":
                    os.setxattr(path.parent, "trusted.overlay.opaque", b"y")
                else:
                    os.mknod(path.with_name(path.name[4:]), 0o20000, os.makedev(0, 0))
                os.utime(path.parent, ns=(times.st_atime_ns, times.st_mtime_ns))
        merged = tmp_path / "merged"
        merged.mkdir()
        lower = ":".join(str(backing / str(number)) for number in reversed(range(len(layers))))
        subprocess.run(["mount", "-t", "overlay", "-o", f"ro,lowerdir={lower}", "none", str(merged)], check=True)
        try:
            theirs = host_view(merged)
        finally:
            subprocess.run(["umount", str(merged)], check=True)
    finally:
        subprocess.run(["umount", str(backing)], check=True)
    with Reader.open(disk_of(tmp_path / "disk", *layers)) as reader:
        ours = reader_view(reader)
    del ours.records["/"], theirs.records["/"]  # tar gives the root no entry here, so its time is the extraction's
    assert {p: r[:5] for p, r in ours.records.items()} == {p: r[:5] for p, r in theirs.records.items()}
    files = [group for group in theirs.groups if len(group) > 1]
    assert files == [["/pair", "/pair-too"]] == [group for group in ours.groups if len(group) > 1]
