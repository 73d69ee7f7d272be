"""What a hostile layer costs grows with its length, not faster: counted in instructions, see tests/support/steps.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imagetool.ext4.xattr import split
from imagetool.tree.merge import merge
from rootdisk.errors import BadInput
from tests.support.steps import LINEAR, growth, instructions
from tests.support.tars import END, directory, file, hard_link, index_once, pax, symlink

ENTRY_MAX = 2500  # instructions for an entry after global headers; 45 ms were some 2 million
GLOBALS = [(b"comment", b"c"), (b"uid", b"5"), (b"SCHILY.acl.access", b"#," * 20_000)] + [
    (b"LIBARCHIVE.xattr.user%%2e%d" % n, b"YQ") for n in range(50)
]


def scanned(tar: Callable[[int], bytes]) -> Callable[[int], Callable[[], object]]:
    def work(count: int) -> Callable[[], object]:
        data = tar(count) + END
        return lambda: index_once(data)

    return work


def merged(*tars: Callable[[int], bytes]) -> Callable[[int], Callable[[], object]]:
    def work(count: int) -> Callable[[], object]:
        found = [(str(n), index_once(tar(count) + END)) for n, tar in enumerate(tars)]
        return lambda: merge(found)

    return work


SCANNED = {
    "global headers": lambda n: b"".join(pax([(b"comment%d" % i, b"c"), (b"uid", b"5")], b"g") for i in range(n)),
    "global headers and entries": lambda n: b"".join(pax([(b"gid", b"%d" % i)], b"g") + file(b"f") for i in range(n)),
    "headers that replace each other": lambda n: pax([(b"uid", b"5")]) * n + file(b"f"),
    "records of a header": lambda n: pax([(b"comment%d" % i, b"c") for i in range(n)]) + file(b"f"),
    "spellings of one attribute": lambda n: pax([(b"LIBARCHIVE.xattr.user." + b"%61" * i, b"") for i in range(2)] * n)
    + file(b"f"),
    "an ACL's entries": lambda n: pax([(b"SCHILY.acl.access", b"user:%d:rwx," * n % tuple(range(n)))]) + file(b"f"),
    "pieces of a sparse file": lambda n: pax(
        [(b"GNU.sparse.size", b"%d" % (2 * n)), (b"GNU.sparse.map", b",".join(b"%d,1" % (2 * i) for i in range(n)))]
    )
    + file(b"f", b"x" * n),
    "pieces before the data": lambda n: pax(
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (4 * n))]
    )
    + file(b"f", (b"%d\n" % n + b"".join(b"%d\n1\n" % (2 * i) for i in range(n))).ljust(-(-8 * n // 512 + 2) * 512, b"\0")),
    "paths that climb": lambda n: pax([(b"path", b"a/../" * n + b"f")]) + file(b"x"),
}  # fmt: skip


@pytest.mark.parametrize("case", SCANNED)
def test_scanning(case: str) -> None:
    def tar(count: int) -> bytes:
        return SCANNED[case](count)  # type: ignore[no-any-return, no-untyped-call]

    def work(count: int) -> Callable[[], object]:
        data = tar(count) + END

        def run() -> None:
            try:
                index_once(data, bare=True)  # so that global headers count
            except BadInput:  # a limit of the form itself: found in as much time
                pass

        return run

    assert growth(work, 150) < LINEAR


def test_an_entry_after_global_headers_costs_what_any_entry_costs() -> None:
    """However much they say; and an entry with a header of its own looks at a bounded number of values."""
    head = b"".join(pax([record], b"g") for record in GLOBALS)
    plain = instructions(lambda: index_once(head + file(b"f") * 20 + END, bare=True))
    more = instructions(lambda: index_once(head + file(b"f") * 40 + END, bare=True))
    assert (more - plain) / 20 < ENTRY_MAX
    own = pax([(b"gid", b"7")]) + file(b"f")
    few = instructions(lambda: index_once(head + own * 20 + END, bare=True))
    many = instructions(lambda: index_once(head + own * 40 + END, bare=True))
    assert (many - few) / 20 < ENTRY_MAX * 5


@pytest.mark.parametrize(
    "records",
    [
        [(b"SCHILY.xattr.user.%d" % n, b"v") for n in range(100)],
        [(b"SCHILY.xattr.user.%d" % n, b"v" * 30_000) for n in range(3)],
        [(b"LIBARCHIVE.xattr.user." + b"a" * n, b"") for n in range(1)] + [(b"GNU.sparse.map", b"0,1")],
    ],
)
def test_what_global_headers_may_set_is_bounded(records: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadInput, match="global extended header"):
        index_once(b"".join(pax([record], b"g") for record in records) + file(b"f") + END, bare=True)


def test_a_default_is_taken_back() -> None:
    tar = pax([(b"uid", b"5"), (b"SCHILY.xattr.user.a", b"1")], b"g") + file(b"a")
    tar += pax([(b"uid", b""), (b"SCHILY.xattr.user.a", b"")], b"g") + file(b"b") + pax([(b"uid", b"6")]) + file(b"c")
    assert [(entry[2], entry[9]) for entry in index_once(tar + END, bare=True)] == [
        (5, {b"user.a": b"1"}),
        (0, None),
        (6, None),
    ]


def test_the_measure_that_can_fail() -> None:
    def work(count: int) -> Callable[[], object]:
        return lambda: [sum(n for n in range(count)) for _ in range(count)]

    assert growth(work, 50) > LINEAR


def many(n: int) -> bytes:
    return b"".join(file(b"d/%d" % i) for i in range(n))


MERGED = {
    "entries that replace each other": [lambda n: (directory(b"a/b/c") + symlink(b"a", b"x") + file(b"a/f")[:0]) * n],
    "files and links by turns": [lambda n: (file(b"f") + hard_link(b"h", b"f") + symlink(b"f", b"h")) * n],
    "chains of hard links": [lambda n: file(b"0") + b"".join(hard_link(b"%d" % (i + 1), b"%d" % i) for i in range(n))],
    "whiteouts": [many, lambda n: b"".join(file(b"d/.wh.%d" % i) for i in range(n))],
    "whiteouts of what is there": [lambda n: b"".join(file(b"d/%d" % i) + file(b"d/.wh.%d" % i) for i in range(n))],
    "deep paths": [lambda n: b"".join(pax([(b"path", b"d/" * i + b"f")]) + file(b"x") for i in (n, n))],
    "many links to one directory": [lambda n: directory(b"d") + b"".join(symlink(b"l%d" % i, b"d") + file(b"l%d/%d" % (i, i)) for i in range(n))],
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_merging(case: str) -> None:
    assert growth(merged(*MERGED[case]), 150) < LINEAR


def test_many_tiny_layers() -> None:
    def work(count: int) -> Callable[[], object]:
        found = [(str(n), index_once(directory(b"d") + file(b"d/%d" % n) + END)) for n in range(count)]
        return lambda: merge(found)

    assert growth(work, 100) < LINEAR


def test_attributes_that_an_inode_and_a_block_share() -> None:
    def work(count: int) -> Callable[[], object]:
        names = {b"user.%d" % n: b"v" * (n % 7) for n in range(count)}

        def run() -> None:
            try:
                split(names)
            except ValueError:
                pass

        return run

    assert growth(work, 500) < LINEAR


def test_all_attributes_of_an_image_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagetool.tree.merge.EXTRAS_MAX_COUNT", 10)
    tar = b"".join(pax([(b"SCHILY.xattr.user.%d" % i, b"") for i in range(4)]) + file(b"%d" % n) for n in range(3))
    with pytest.raises(BadInput, match="entry '2': the image has more than 10 xattrs and pieces"):
        merge([("a", index_once(tar + END))])
