"""ext4's limits, each at its edge and one past it: what is written e2fsck accepts, and what is not is one error with the path."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imagetool.ext4 import directory as directories
from imagetool.ext4.htree import seed_words
from imagetool.ext4.plan import DiskOptions, plan
from imagetool.tree.model import Directory, File, Layer, Special, Symlink, Tree
from rootdisk.errors import BadInput
from rootdisk.ext4.format import FILE_MAX_BYTES
from tests.support import disks
from tests.support.disks import complaints, needs_e2fsck
from tests.support.steps import LINEAR, growth
from tests.support.tars import directory, file, padded, pax

LATEST = (1 << 34) - (1 << 31) - 1  # s; two bits more than a signed 32-bit number
EARLIEST = -(1 << 31)


def tree_with(inode: object, name: bytes = b"it") -> Tree:
    files = [inode] if isinstance(inode, File) else []
    tree = Tree(layers=[Layer("sha256:0", files)])
    tree.root.children[name] = inode  # type: ignore[assignment]
    return tree


def sparse(size: int, at: int = 0) -> File:
    """A file of `size` bytes whose only data are four from `at` on."""
    return File(stat.S_IFREG | 0o644, layer=0, size=size, offset=0, segments=((at, 0, 4),))


FITS = {
    "the largest file": sparse(FILE_MAX_BYTES, FILE_MAX_BYTES - 4),
    "the largest file, empty": File(stat.S_IFREG | 0o644, layer=0, size=FILE_MAX_BYTES, offset=0, segments=()),
    "the longest link": Symlink(b"t" * 4095),
    "the latest time": Directory(mtime_ns=LATEST * 10**9),
    "the earliest time": Directory(mtime_ns=EARLIEST * 10**9),
    "the highest device": Special(stat.S_IFCHR | 0o600, major=4095, minor=(1 << 20) - 1),
    "the highest owner": Directory(uid=0xFFFF_FFFE, gid=0xFFFF_FFFE),
    "all attributes": Directory(xattrs={b"user.%03d" % n: b"" for n in range(160)}),
    "the longest attribute": Directory(xattrs={b"user.a": b"v" * 4040}),
}
TOO_MUCH: dict[str, tuple[object, str]] = {
    "file": (sparse(FILE_MAX_BYTES + 1), f"/it: a file of {FILE_MAX_BYTES + 1} bytes"),
    "file of 2^44": (sparse(1 << 44), "/it: a file of 17592186044416 bytes"),
    "file of 2^62": (sparse(1 << 62, 1 << 61), "/it: a file of 4611686018427387904 bytes"),
    "link": (Symlink(b"t" * 4096), "/it: a link target longer than 4095 bytes"),
    "time": (Directory(mtime_ns=(LATEST + 1) * 10**9), f"/it/: the time {LATEST + 1} s"),
    "early time": (File(stat.S_IFREG, mtime_ns=EARLIEST * 10**9 - 1, layer=0, size=0, offset=0), "/it: the time -2147483649 s"),
    "device": (Special(stat.S_IFBLK, major=4096), "/it: device 4096:0"),
    "attributes": (Directory(xattrs={b"user.%03d" % n: b"v" for n in range(250)}), "/it/: .* bytes of extended attributes"),
    "attribute": (Directory(xattrs={b"user.a": b"v" * 4090}), "/it/: .* bytes of extended attributes"),
    "attribute name": (Symlink(b"x", xattrs={b"user." + b"n" * 256: b""}), "/it: .*longer than 255"),
}  # fmt: skip


class Zeros:
    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        for buffer in buffers:
            buffer[:] = b"x" * len(buffer)


@needs_e2fsck
@pytest.mark.parametrize("case", FITS)
def test_at_the_edge(tmp_path: Path, case: str) -> None:
    path = disks.write(tmp_path / "disk", tree_with(FITS[case]), [Zeros()])
    assert complaints(path) == []


@pytest.mark.parametrize("case", TOO_MUCH)
def test_one_past_it(tmp_path: Path, case: str) -> None:
    inode, words = TOO_MUCH[case]
    with pytest.raises(BadInput, match=words):
        disks.write(tmp_path / "disk", tree_with(inode), [Zeros()])


def test_the_root_has_limits_too() -> None:
    for mtime_ns in ((LATEST + 1) * 10**9, EARLIEST * 10**9 - 1):
        tree = tree_with(Symlink(b"x"))
        tree.root.mtime_ns = mtime_ns
        with pytest.raises(BadInput, match=r"^/: the time"):
            plan(tree, DiskOptions(64 << 20, bytes(16)))


def test_what_a_later_layer_hides_has_no_limits() -> None:
    tree, _ = disks.tree_of(file(b"f", mtime=1 << 40) + file(b"d/g", mtime=1 << 40), file(b"f") + file(b"d/.wh.g"))
    plan(tree, DiskOptions(64 << 20, bytes(16)))


@needs_e2fsck
def test_names_of_255_bytes_and_names_that_ext4_knows(tmp_path: Path) -> None:
    layer = pax([(b"path", b"n" * 255)]) + file(b"x") + file(b"lost+found") + directory(b"\xff" * 90 + b"\x01\n")
    assert complaints(disks.disk_of(tmp_path / "disk", layer)) == []


@needs_e2fsck
def test_a_sparse_file_of_sixteen_tebibytes_in_a_tar(tmp_path: Path) -> None:
    """All forms that tars have, through the scanner: at the edge, and one past it."""
    for size in (FILE_MAX_BYTES, FILE_MAX_BYTES + 1, 1 << 44, 1 << 62):
        forms = [
            pax([(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.map", b"%d,1" % (size - 1))]) + file(b"f", b"x"),
            pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % size)])
            + file(b"f", padded(b"1\n%d\n1\n" % (size - 1)) + b"x"),
        ]
        for layer in forms:
            if size > FILE_MAX_BYTES:
                with pytest.raises(BadInput, match="/f: a file of"):
                    disks.disk_of(tmp_path / "disk", layer)
            else:
                assert complaints(disks.disk_of(tmp_path / "disk", layer)) == []


def test_a_path_that_links_make_longer_than_a_tar_can_say() -> None:
    long = b"d/" * 2000
    layer = b"".join(
        pax([(b"path", b"l%d" % n), (b"linkpath", (b"l%d/" % (n - 1) if n else b"") + long)]) + file(b"x", kind=b"2")
        for n in range(40)
    )
    tree, _ = disks.tree_of(layer + file(b"l39/f"))
    with pytest.raises(BadInput, match=r"^/d/d/.*…: a path of \d+ bytes: at most 65536"):
        plan(tree, DiskOptions(256 << 20, bytes(16)))


def test_names_that_collide_in_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash's seed is the same on all disks, so an image may choose names of one hash: an attacker's part is played by
    a hash that is always the same."""
    monkeypatch.setattr(directories, "half_md4", lambda names, seed: [(8, name) for name in sorted(names)])

    def work(count: int) -> Callable[[], object]:
        names = [b"name-%06d" % n for n in range(count)]

        def render() -> None:
            index = directories.index(names, seed_words(bytes(range(16))))
            for block in range(index.blocks):
                directories.index_block(block, index, 2, 2, lambda name: (name, 11, 1), 1)

        return render

    assert growth(work, 2000) < LINEAR


def planned(tree: Callable[[int], bytes]) -> Callable[[int], Callable[[], object]]:
    def work(count: int) -> Callable[[], object]:
        made, _ = disks.tree_of(tree(count))
        return lambda: plan(made, DiskOptions(64 << 20, bytes(16)))

    return work


PLANNED = {
    "files": lambda n: b"".join(file(b"f%d" % i, b"x") for i in range(n)),
    "directories": lambda n: b"".join(directory(b"d%d" % i) for i in range(n)),
    "a nest": lambda n: pax([(b"path", b"d/" * n + b"f")]) + file(b"x"),
    "attributes": lambda n: b"".join(pax([(b"SCHILY.xattr.user.a", b"%d" % i * 30)]) + file(b"%d" % i) for i in range(n)),
    "pieces": lambda n: pax(
        [(b"GNU.sparse.size", b"%d" % (8192 * n)), (b"GNU.sparse.map", b",".join(b"%d,1" % (8192 * i) for i in range(n)))]
    ) + file(b"f", b"x" * n),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANNED)
def test_planning_costs_what_there_is(case: str) -> None:
    assert growth(planned(PLANNED[case]), 700) < LINEAR


def test_owners_of_everything_cost_what_there_is() -> None:
    """Every table block looks at the inodes in it, not at all that were changed."""

    def work(count: int) -> Callable[[], object]:
        tree, _ = disks.tree_of(b"".join(file(b"f%d" % i) for i in range(count)))
        tree.layers.append(Layer("rootdisk:0", [], (b"x",), [node for _, node in tree.walk()]))
        return lambda: plan(tree, DiskOptions(64 << 20, bytes(16), identity=b"one"))

    assert growth(work, 3000) < LINEAR
