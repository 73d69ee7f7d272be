"""Each header form that tars have, read to the field."""

from __future__ import annotations

import io
import struct
import tarfile

import pytest

from imagetool.tree.index import TarIndex
from rootdisk.errors import BadInput
from tests.support import tars
from tests.support.tars import END, directory, file, header, index, pax, symlink


def only(tar: bytes) -> dict[str, object]:
    (entry,) = list(index(tar + END))
    names = ["kind", "mode", "uid", "gid", "mtime_ns", "first", "second", "path", "target", "xattrs", "segments"]
    return dict(zip(names, entry, strict=True))


CASES = {
    "ustar": (file(b"a/b", b"12", uid=7, gid=8, mode=0o4755), {"path": b"a/b", "mode": 0o4755, "uid": 7, "second": 2}),
    "dots": (file(b"./a//b/../c/."), {"path": b"a/c"}),
    "absolute": (file(b"/../../etc/x"), {"path": b"etc/x"}),
    "root": (directory(b"./", mode=0o700), {"path": b"", "mode": 0o700}),
    "prefix": (file(b"end", tail=b"some/where"), {"path": b"some/where/end"}),
    "gnu has times in place of a prefix": (
        file(b"end", magic=b"ustar  \0", tail=tars.octal(5, 12) + tars.octal(-6, 12)),
        {"path": b"end"},
    ),
    "go before 1.8": (file(b"end", magic=b"ustar  \0", tail=b"some/where"), {"path": b"some/where/end"}),
    "gnu with bytes that are no times": (file(b"end", magic=b"ustar  \0", tail=b"\x7f\xff" * 12), {"path": b"end"}),
    "v7 directory": (header(b"d/", b"\0", magic=bytes(8)), {"path": b"d", "kind": ord("5")}),
    "contiguous": (header(b"f", b"7"), {"kind": ord("0")}),
    "signed sum": (
        file(b"\xff\xfe", checksum=lambda b: sum(x - 256 if x > 127 else x for x in b)),
        {"path": b"\xff\xfe"},
    ),
    "base 256": (file(b"f", uid=1 << 31, mtime=-5), {"uid": 1 << 31, "mtime_ns": -5_000_000_000}),
    "late": (file(b"f", mtime=1 << 34), {"mtime_ns": (1 << 34) * 10**9}),
    "no data in links": (header(b"l", b"2", target=b"x", size=99), {"target": b"x"}),
    "device": (header(b"n", b"3", major=5, minor=1), {"first": 5, "second": 1, "kind": ord("3")}),
    "long name": (header(b"L", b"L", size=4) + tars.padded(b"lo/g") + file(b"short"), {"path": b"lo/g"}),
    "empty long names": (
        header(b"L", b"L", size=1) + tars.padded(b"\0") + header(b"K", b"K") + symlink(b"short", b"t"),
        {"path": b"short", "target": b"t"},
    ),
    "pax": (
        pax([(b"path", b"p/\xc3\xa9"), (b"uid", b"70000"), (b"mtime", b"-1.5")]) + file(b"f"),
        {"path": b"p/\xc3\xa9", "uid": 70000, "mtime_ns": -1_500_000_000},
    ),
    "global": (pax([(b"uid", b"5"), (b"gid", b"6")], b"g") + pax([(b"gid", b"9")]) + file(b"f"), {"uid": 0, "gid": 9}),
    "plus signs": (
        pax([(b"size", b"+3"), (b"uid", b"+5")]) + header(b"f") + tars.padded(b"abc"),
        {"second": 3, "uid": 5},
    ),
    "a header at the end": (file(b"f", uid=7) + pax([(b"uid", b"5")]), {"uid": 7}),
    "pax size": (pax([(b"size", b"3")]) + header(b"f") + tars.padded(b"abc"), {"second": 3}),
    "xattrs": (
        pax([(b"SCHILY.xattr.user.a", b"x\n\0"), (b"LIBARCHIVE.xattr.user.b%3d", b"eHk")]) + file(b"f"),
        {"xattrs": {b"user.a": b"x\n\0", b"user.b=": b"xy"}},
    ),
    "acl": (
        pax([(b"SCHILY.acl.access", b"user::rw-,user:lisa:r-x:502,group::r--,mask::rwx,other::---")]) + file(b"f"),
        {
            "xattrs": {
                b"system.posix_acl_access": struct.pack(
                    "<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 5, 502, 4, 4, 2**32 - 1, 16, 7, 2**32 - 1, 32, 0, 2**32 - 1
                )
            }
        },
    ),
    "star": (  # a prefix of 131 bytes, times behind it, and its mark at the end
        header(b"f", tail=b"dir".ljust(131, b"\0") + tars.octal(5, 12) + tars.octal(6, 12) + bytes(8) + b"tar\0"),
        {"path": b"dir/f"},
    ),
    "sparse old": (
        header(
            b"s",
            b"S",
            size=3,
            magic=b"ustar  \0",
            tail=bytes(41) + tars.octal(512, 12) + tars.octal(3, 12) + bytes(73) + tars.octal(2000, 12),
        )
        + tars.padded(b"abc"),
        {"second": 2000, "segments": ((512, 512, 3),)},
    ),
    "sparse 0.0": (
        pax(
            [
                (b"GNU.sparse.size", b"9"),
                (b"GNU.sparse.numblocks", b"2"),
                (b"GNU.sparse.offset", b"1"),
                (b"GNU.sparse.numbytes", b"1"),
                (b"GNU.sparse.offset", b"5"),
                (b"GNU.sparse.numbytes", b"2"),
            ]
        )
        + file(b"s", b"abc"),
        {"second": 9, "segments": ((1, 1536, 1), (5, 1537, 2))},
    ),
    "sparse 0.1": (
        pax([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"1,1,9,0"), (b"GNU.sparse.name", b"n")])
        + file(b"s", b"a"),
        {"path": b"n", "second": 9, "segments": ((1, 1536, 1),)},
    ),
    "sparse without a hole": (
        pax([(b"GNU.sparse.map", b"0,3"), (b"GNU.sparse.realsize", b"3"), (b"GNU.sparse.name", b"n")])
        + file(b"s", b"abc"),
        {"path": b"n", "second": 3, "segments": None},
    ),
    "sparse 0.0, all hole": (
        pax([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"0")]) + file(b"s"),
        {"second": 9, "segments": ()},
    ),
    "sparse 1.0, all hole": (
        pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")])
        + file(b"s", tars.padded(b"0\n")),
        {"second": 9, "segments": ()},
    ),
    "sparse by name only": (
        pax([(b"GNU.sparse.name", b"n"), (b"GNU.sparse.realsize", b"9")]) + file(b"s", b"abc"),
        {"path": b"s", "second": 3, "segments": None},
    ),
    "sparse 1.1": (
        pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"1"), (b"GNU.sparse.realsize", b"9")])
        + file(b"s", b"abc"),
        {"path": b"s", "second": 3, "segments": None},
    ),
    "sparse 2.0": (
        pax([(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.map", b"0,3")])
        + file(b"s", b"abc"),
        {"second": 3, "segments": None},
    ),
    "sparse 1.0": (
        pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")])
        + file(b"s", tars.padded(b"1\n4\n2\n") + b"ab"),
        {"second": 9, "segments": ((4, 2048, 2),)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_forms(case: str) -> None:
    tar, expected = CASES[case]
    entry = only(tar)
    assert {key: entry[key] for key in expected} == expected  # type: ignore[attr-defined]


def test_global_headers_of_a_bare_tar() -> None:
    tar = pax([(b"uid", b"5"), (b"gid", b"6")], b"g") + pax([(b"gid", b"9")]) + file(b"f") + END
    assert [(entry[2], entry[3]) for entry in index(tar, bare=True)] == [(5, 9)]
    assert [(entry[2], entry[3]) for entry in index(tar)] == [(0, 9)]  # as runtimes read layers


def test_a_directory_by_its_slash() -> None:
    """GNU tar takes it so whatever the type says, Go only in a v7 header."""
    for kind, bare, found in ((b"0", True, "5"), (b"0", False, "0"), (b"\0", False, "5"), (b"\0", True, "5")):
        assert [chr(entry[0]) for entry in index(header(b"d/", kind) + END, bare=bare)] == [found]
    assert [chr(entry[0]) for entry in index(file(b"d/", b"data") + file(b"f") + END, bare=True)] == ["0", "0"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_as_pythons_tarfile(form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for n in range(300):
            info = tarfile.TarInfo(
                "d" * (n % 90) + "/" + "f" * (1 + n % 99 if form == tarfile.USTAR_FORMAT else 1 + n % 240)
            )
            info.size, info.uid, info.mtime = n, n, n
            tar.addfile(info, io.BytesIO(b"x" * n))
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
        want = [(i.name.lstrip("/").encode(), i.size, i.uid, i.offset_data) for i in tar]
    assert [(e[7], e[6], e[2], e[5]) for e in index(buffer.getvalue())] == want


def test_packed_index() -> None:
    found = index(b"".join(tar for tar, _ in CASES.values() if tar[156:157] != b"g"))
    packed = found.pack()
    assert TarIndex.unpack(packed, "test") == found
    for n in range(0, len(packed), 7):
        with pytest.raises(BadInput):
            TarIndex.unpack(packed[:n] + bytes([packed[n] ^ 1]) + packed[n + 1 :], "test")
