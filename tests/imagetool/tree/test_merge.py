"""Layers merged as runtimes do: a table, random stacks against the model, and umoci to the inode."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections import defaultdict
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagetool.ext4.plan import DiskOptions, plan
from imagetool.tree.merge import merge
from imagetool.tree.model import Directory, File, Inode, Special, Symlink, Tree
from rootdisk.errors import BadInput
from tests.support import model
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, hard_link, header, index, pax, symlink


def merged(*layers: bytes) -> Tree:
    return merge((f"sha256:{n}", index(tar + END, f"layer {n}")) for n, tar in enumerate(layers))


def names(tree: Tree) -> str:
    return " ".join(path.decode() for path, inode in tree.walk() if not isinstance(inode, Directory))


BASE = file(b"d/a") + file(b"d/b") + file(b"d/e/c") + file(b"x")
TABLE = [
    ((BASE, file(b"d/.wh.a")), "/d/b /d/e/c /x"),
    ((BASE, file(b".wh.d")), "/x"),
    ((BASE, file(b".wh.d") + file(b"d/n")), "/d/n /x"),
    ((BASE, file(b"d/n") + file(b".wh.d")), "/d/n /x"),
    ((BASE, file(b"d/.wh..wh..opq") + file(b"d/n")), "/d/n /x"),
    ((BASE, file(b"d/n") + file(b"d/.wh..wh..opq")), "/d/n /x"),
    ((BASE, file(b"d/e/n") + file(b"d/.wh..wh..opq")), "/d/e/n /x"),
    ((BASE, file(b"x") + file(b".wh.x")), "/d/a /d/b /d/e/c /x"),
    (
        (BASE, file(b"no/.wh.x") + file(b".wh.no") + file(b".wh..wh.plnk/1") + directory(b".wh..wh.orph")),
        names(merged(BASE)),
    ),
    ((BASE, file(b"d")), "/d /x"),
    ((BASE, directory(b"x") + file(b"x/y")), "/d/a /d/b /d/e/c /x/y"),
    ((BASE, symlink(b"l", b"d") + file(b"l/n")), "/d/a /d/b /d/e/c /d/n /l /x"),
    ((BASE, symlink(b"l", b"/../d/e/../e") + file(b"l/.wh.c")), "/d/a /d/b /l /x"),
    ((symlink(b"l", b"new/deep") + file(b"l/f"),), "/l /new/deep/f"),
    ((BASE, hard_link(b"h", b"./d/a"), file(b"d/.wh.a")), "/d/b /d/e/c /h /x"),
    ((BASE, symlink(b"l", b"d"), file(b"l/.wh..wh..opq") + file(b"l/n")), "/d/a /d/b /d/e/c /d/n /l /x"),
    (
        (BASE, symlink(b"l", b"d"), file(b"l/.wh..wh..opq") + directory(b"l") + file(b"l/n")),
        "/d/a /d/b /d/e/c /l/n /x",
    ),
    ((BASE, symlink(b"l", b"d"), file(b"l/e/.wh..wh..opq")), "/d/a /d/b /l /x"),
]


@pytest.mark.parametrize("row", range(len(TABLE)))
def test_table(row: int) -> None:
    layers, expected = TABLE[row]
    assert names(merged(*layers)) == expected


@pytest.mark.parametrize(
    "layers",
    [
        (BASE, file(b".wh.x") + hard_link(b"h", b"x")),
        (BASE, hard_link(b"h", b"d")),
        (BASE, hard_link(b"x", b"x")),
        (BASE, hard_link(b"d", b"d/a")),
        (BASE, file(b"x/y")),
        (symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/x"),),
        (file(b"./"),),
        (file(b"d/.wh."),),
        (BASE, file(b".wh...")),
    ],
)
def test_refused(layers: tuple[bytes, ...]) -> None:
    with pytest.raises(BadInput, match=f"layer layer {len(layers) - 1}: entry"):
        merged(*layers)


def test_inodes_and_layers() -> None:
    tree = merged(
        directory(b"d", 0o700, uid=3)
        + file(b"d/f", b"1")
        + hard_link(b"d/g", b"d/f", mode=0o600, uid=9)
        + symlink(b"s", b"1"),
        file(b"d/f", b"22") + directory(b"d", 0o711) + symlink(b"s", b"2") + hard_link(b"t", b"s") + file(b"implied/x"),
    )
    g, f, d, s = (tree.lookup(p) for p in (b"d/g", b"d/f", b"d", b"s"))
    assert isinstance(g, File)
    assert isinstance(f, File)
    assert isinstance(d, Directory)
    assert isinstance(s, Symlink)
    assert (g.uid, g.mode, g.layer, f.layer, f.size) == (9, stat.S_IFREG | 0o600, 0, 1, 2)
    assert (d.mode & 0o7777, d.layer, s.layer, s.target) == (0o711, 0, 0, b"2")
    assert tree.lookup(b"t") is s
    implied = tree.lookup(b"implied")
    assert implied is not None
    assert (implied.mode, implied.uid, implied.mtime_ns) == (stat.S_IFDIR | 0o755, 0, 0)


def test_layer_files() -> None:
    """All regular files of a layer in path order, hidden or not; replaced ones only while a hard link holds them."""
    twice = (
        file(b"b", b"1")
        + file(b"c", b"1")
        + hard_link(b"a/l", b"c")
        + file(b"b", b"22")
        + file(b"c", b"22")
        + file(b"a.")
    )
    tree = merged(twice, file(b".wh.b"))
    files = tree.layers[0].files
    assert [(f.size, cut) for f, cut in zip(files, tree.layers[0].cuts, strict=True)] == [
        (0, crc32(b"a.")), (2, crc32(b"b")), (2, crc32(b"c")), (1, crc32(b"c"))
    ]  # fmt: skip
    assert tree.lookup(b"a/l") is files[3]
    assert tree.layers[1].files == []


DIRECTORIES = directory(b"d1") + directory(b"d2")
MOVED = {
    "in one layer": (DIRECTORIES + symlink(b"a", b"d1") + file(b"a/f", b"1") + symlink(b"a", b"d2") + file(b"a/f", b"22"),),
    "a link of a lower layer": (
        DIRECTORIES + symlink(b"a", b"d1"),
        file(b"a/f", b"1") + symlink(b"a", b"d2") + file(b"a/f", b"22"),
    ),
    "it becomes a directory": (
        DIRECTORIES + symlink(b"a", b"d1") + file(b"a/f", b"1") + directory(b"a") + file(b"a/f", b"22"),
    ),
    "a whiteout between": (
        DIRECTORIES + symlink(b"a", b"d1"),
        file(b"a/f", b"1") + file(b".wh.a") + symlink(b"a", b"d2") + file(b"a/f", b"22"),
    ),
    "a link on the way": (
        directory(b"x/d1") + directory(b"y/d1") + symlink(b"l", b"x") + symlink(b"a", b"l/d1") + file(b"a/f", b"1")
        + symlink(b"l", b"y") + file(b"a/f", b"22"),
    ),
    "by a hard link": (
        DIRECTORIES + file(b"o", b"22") + symlink(b"a", b"d1") + file(b"a/f", b"1") + symlink(b"a", b"d2")
        + hard_link(b"a/f", b"o"),
    ),
    "there and back": (
        DIRECTORIES + symlink(b"a", b"d1") + file(b"a/f", b"1") + symlink(b"a", b"d2") + file(b"a/f", b"22")
        + symlink(b"a", b"d1") + file(b"a/f", b"333"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVED)
def test_a_link_moves_between_two_writes(case: str) -> None:
    """A file stays in its layer's list if its path leads to another place the second time."""
    tree = merged(*MOVED[case])
    seen = {id(inode): inode.size for _, inode in tree.walk() if isinstance(inode, File)}
    listed = {id(file): file.size for layer in tree.layers for file in layer.files}
    assert seen.items() <= listed.items()
    assert sorted(seen.values()) == ([2, 3] if case == "there and back" else [1, 2])


def test_hard_links_of_aufs() -> None:
    """Old images of AUFS: a file with several names is in .wh..wh.plnk, and its names are hard links there."""
    plnk = directory(b".wh..wh.plnk") + file(b".wh..wh.plnk/88.1", b"1") + file(b".wh..wh.plnk/88.2", b"22")
    tree = merged(plnk + hard_link(b"b", b"/.wh..wh.plnk/88.2") + hard_link(b"a", b".wh..wh.plnk/88.2", uid=7))
    assert names(tree) == "/a /b"
    assert (tree.root.children[b"a"], tree.layers[0].files) == (tree.root.children[b"b"], [tree.root.children[b"a"]])
    assert tree.root.children[b"a"].uid == 7
    assert plan(tree, DiskOptions(64 << 20, bytes(16))).chunks
    with pytest.raises(BadInput, match="not there"):  # of another layer
        merged(plnk, hard_link(b"b", b".wh..wh.plnk/88.2"))


def test_what_a_replaced_directory_held_is_left_out() -> None:
    """As ever: nothing shows the first d/f any more, and its path is written again."""
    tree = merged(file(b"d/f", b"1") + symlink(b"d", b"e") + file(b"d/f", b"22"))
    assert [file.size for file in tree.layers[0].files] == [2]


def test_five_thousand_deep() -> None:
    name = b"d/" * 5000 + b"f"
    tree = merged(pax([(b"path", name)]) + file(b"x", b"1"), file(b".wh.d"))
    assert not tree.root.children


PATHS = st.sampled_from([f"{a}{b}{c}" for a in "pq" for b in ("", "/r", "/s") for c in ("", "/t", "/u") if b or not c])
STEPS = st.tuples(st.sampled_from(["file", "file", "dir", "link", "whiteout", "opaque"]), PATHS, PATHS)


@given(st.lists(st.lists(STEPS, max_size=8), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_as_the_model(layers: list[list[tuple[str, str, str]]]) -> None:
    steps = [[(k, p, v if k == "link" else "755") for k, p, v in layer] for layer in layers]
    expected = model.apply(steps)
    tars = []
    for layer in steps:
        tar = b""
        for kind, path, value in layer:
            parent, _, last = path.rpartition("/")
            if kind == "whiteout":
                tar += file((parent + "/.wh." + last).encode())
            elif kind == "opaque":
                tar += file((path + "/.wh..wh..opq").encode())
            elif kind == "link":
                tar += hard_link(path.encode(), value.encode())
            else:
                tar += directory(path.encode()) if kind == "dir" else file(path.encode())
        tars.append(tar)
    if expected is None:
        with pytest.raises(BadInput):
            merged(*tars)
        return
    tree = merged(*tars)
    found = {path[1:].decode(): inode for path, inode in tree.walk() if path != b"/"}
    assert {p: isinstance(i, Directory) for p, i in found.items()} == {p: k == "dir" for p, (k, _) in expected.items()}
    groups: dict[object, set[int]] = defaultdict(set)
    for path, (kind, value) in expected.items():  # type: ignore[assignment]
        if kind == "file":
            groups[value].add(id(found[path]))
    assert all(len(ids) == 1 for ids in groups.values())
    assert len({next(iter(ids)) for ids in groups.values()}) == len(groups)


def described(path: str, inode: Inode, layers: list[bytes]) -> tuple[object, ...]:
    data: object = None
    if isinstance(inode, File):
        content = bytearray(inode.size)
        for at, offset, length in inode.segments or ((0, inode.offset, inode.size),):
            content[at : at + length] = layers[inode.layer][offset : offset + length]
        data = hashlib.sha256(content).hexdigest()
    elif isinstance(inode, Symlink):
        data = inode.target
    elif isinstance(inode, Special):
        data = (inode.major, inode.minor)
    return path, inode.mode, inode.uid, inode.gid, inode.mtime_ns, data, sorted((inode.xattrs or {}).items())


def on_host(path: str, real: str) -> tuple[object, ...]:
    info = os.lstat(real)
    data: object = None
    if stat.S_ISREG(info.st_mode):
        data = hashlib.sha256(Path(real).read_bytes()).hexdigest()
    elif stat.S_ISLNK(info.st_mode):
        data = os.readlink(os.fsencode(real))
    elif not stat.S_ISDIR(info.st_mode):
        data = (os.major(info.st_rdev), os.minor(info.st_rdev))
    xattrs = [
        (n.encode(), os.getxattr(real, n, follow_symlinks=False)) for n in os.listxattr(real, follow_symlinks=False)
    ]
    return path, info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, data, sorted(xattrs)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("umoci") is None, reason="needs root and umoci")
@pytest.mark.parametrize("compression", ["gzip", "plain"])
def test_as_umoci(tmp_path: Path, compression: str) -> None:
    layers = [
        directory(b"./", 0o755, mtime=77)
        + directory(b"d", 0o1777, uid=5, gid=6)
        + directory(b"d/e", 0o700)
        + file(b"d/a", b"data" * 500, mode=0o4755, uid=70000, mtime=-100)
        + file(b"d/e/c", b"c")
        + hard_link(b"h", b"d/a", mode=0o4755, uid=70000, mtime=-100)
        + symlink(b"s", b"d/e")
        + hard_link(b"s2", b"s")
        + file(b"\xff\xfe", b"n")
        + pax([(b"SCHILY.xattr.user.k", b"v\0w"), (b"mtime", b"12.25")]) + file(b"xa", b"1")
        + header(b"c", b"3", major=1, minor=3) + header(b"b", b"4", major=7, minor=300) + header(b"p", b"6"),
        directory(b"d", 0o711, mtime=5)
        + file(b"s/new", b"through the link")
        + file(b"d/.wh.a")
        + file(b"d/e/.wh..wh..opq")
        + hard_link(b"h2", b"h", mode=0o4755, uid=70000, mtime=-100)
        + pax([(b"GNU.sparse.size", b"9000"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"5000,3")]) + file(b"sparse", b"abc"),
        file(b"h", b"own") + file(b".wh.xa") + file(b"p", b"no pipe") + symlink(b"s", b"d") + file(b"s/late", mtime=1 << 33),
    ]  # fmt: skip
    layers = [layer + END for layer in layers]
    write_layout(tmp_path / "oci", "t", layers, compression=compression)
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path}/oci:t", tmp_path / "b"], check=True, stdin=subprocess.DEVNULL
    )
    root = os.fspath(tmp_path / "b/rootfs")
    theirs = {}
    their_groups: dict[int, set[str]] = defaultdict(set)
    for folder, folders, files in os.walk(root):
        for real in [folder] + [
            f"{folder}/{n}" for n in files + [n for n in folders if os.path.islink(f"{folder}/{n}")]
        ]:
            path = real[len(root) :] or "/"
            theirs[path] = on_host(path, real)
            their_groups[os.lstat(real).st_ino].add(path)
    tree = merge((str(n), index(layer)) for n, layer in enumerate(layers))
    ours, groups = {}, defaultdict(set)
    for path, inode in tree.walk():  # type: ignore[assignment]
        ours[os.fsdecode(path)] = described(os.fsdecode(path), inode, layers)
        groups[id(inode)].add(os.fsdecode(path))
    assert ours == theirs
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, their_groups.values()))
