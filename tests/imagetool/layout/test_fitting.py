"""What an ext4 disk cannot hold: left out or changed, with one remark that names file, layer and reason."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from imagetool.ext4.reader import Reader
from imagetool.layout.fitting import fit
from imagetool.tree.model import File, Inode, Tree
from imagetool.tree.remarks import Remark, counts, in_words, refuse
from rootdisk.errors import BadInput
from rootdisk.ext4.format import TIME_MAX, TIME_MIN
from tests.support.disks import complaints, needs_e2fsck, reader_view, tree_of, write
from tests.support.tars import directory, file, hard_link, header, pax, symlink

PASSWD, GROUP = b"root:x:0:0::/:/bin/sh\nlisa:x:502:7::/:\nbad:x:4294967296:1::/:\n", b"adm:x:4:\nroot:x:0:\n"
ACCOUNTS = file(b"etc/passwd", PASSWD) + file(b"etc/group", GROUP)


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


MINIMAL = ((1, 7, -1 & 0xFFFF_FFFF), (4, 5, -1 & 0xFFFF_FFFF), (0x20, 5, -1 & 0xFFFF_FFFF))
NAMED = acl(MINIMAL[0], (2, 7, 502), MINIMAL[1], (0x10, 7, -1 & 0xFFFF_FFFF), MINIMAL[2])


def fitted(*layers: bytes, tmp_path: Path | None = None) -> tuple[Tree, list[Remark]]:
    """The tree after fit(), as `imagetool disk` has it; written and checked with `tmp_path`."""
    tree, sources = tree_of(*layers)

    def read(wanted: File) -> bytes:
        data = bytearray(wanted.size)
        sources[wanted.layer].read_into([memoryview(data)], wanted.offset)
        return bytes(data)

    remarks = fit(tree, read)
    if tmp_path is not None:
        disk = write(tmp_path / "disk", tree, sources)
        assert complaints(disk) == []
        with Reader.open(disk) as reader:
            assert reader_view(reader).records
    return tree, remarks


def at(tree: Tree, path: bytes) -> Inode:
    inode = tree.lookup(path)
    assert inode is not None
    return inode


CAPABILITIES = struct.pack("<5I", 0x02000001, 0x400, 0, 0, 0)


def with_records(*records: tuple[bytes, bytes]) -> bytes:
    return pax(list(records)) + file(b"d/f", b"1")


XATTR = b"SCHILY.xattr."
FAULTS: dict[str, tuple[list[tuple[bytes, bytes]], str]] = {
    "a namespace of macOS": ([(XATTR + b"com.apple.provenance", b"1")], "com.apple.provenance: Linux has no such namespace"),
    "the same by libarchive": ([(b"LIBARCHIVE.xattr.com.apple.x", b"MQ")], "com.apple.x: Linux has no such namespace"),
    "another namespace": ([(XATTR + b"os2.x", b"1")], "os2.x: Linux has no such namespace"),
    "a namespace alone": ([(XATTR + b"user.", b"1")], "user.: Linux has no such namespace"),
    "no dot": ([(XATTR + b"usr", b"1")], "usr: Linux has no such namespace"),
    "a long name": ([(XATTR + b"user." + b"n" * 251, b"")], "n…: its name cannot be one"),
    "an escape": ([(XATTR + b"\x1b[2J", b"")], r"\x1b[2J: Linux has no such namespace"),
    "an empty name": ([(XATTR, b"1")], "its name cannot be one"),
    "a NUL": ([(b"LIBARCHIVE.xattr.user.a%00b", b"MQ==")], "its name cannot be one"),
    "a NUL first": ([(b"LIBARCHIVE.xattr.%00a", b"/w==")], "its name cannot be one"),
    "a NUL as we note ACLs": ([(b"LIBARCHIVE.xattr.%00SCHILY.acl.access", b"/w==")], "its name cannot be one"),
    "a NUL in a record": ([(XATTR + b"\0SCHILY.acl.default", b"\xff")], "its name cannot be one"),
    "not base64": ([(b"LIBARCHIVE.xattr.user.a", b"*")], "user.a: its value is not base64"),
    "a long value": ([(XATTR + b"user.a", bytes(65537))], "user.a: it is longer than 64 KiB"),
    "more than a block holds": ([(XATTR + b"user.a", b"v" * 4090)], "user.a: with the others it does not fit"),
    "a binary ACL with an unknown tag": (
        [(XATTR + b"system.posix_acl_access", acl(*MINIMAL, (0x40, 7, 0)))], "system.posix_acl_access: it is not a valid ACL"
    ),
    "a binary ACL without mask": (
        [(XATTR + b"system.posix_acl_access", acl(MINIMAL[0], (2, 7, 5), *MINIMAL[1:]))], "it is not a valid ACL"
    ),
    "a binary ACL out of order": ([(XATTR + b"system.posix_acl_access", acl(*reversed(MINIMAL)))], "it is not a valid ACL"),
    "a binary ACL of nobody": (
        [(XATTR + b"system.posix_acl_access", NAMED.replace(struct.pack("<I", 502), b"\xff" * 4))], "it is not a valid ACL"
    ),
    "a binary ACL with odd rights": ([(XATTR + b"system.posix_acl_access", acl((1, 8, 0), *MINIMAL[1:]))], "it is not a valid ACL"),
    "an ACL that is text": ([(XATTR + b"system.posix_acl_access", b"user::rwx")], "it is not a valid ACL"),
    "an ACL cut": ([(XATTR + b"system.posix_acl_access", NAMED[:-1])], "it is not a valid ACL"),
    "a name that nobody has": (
        [(b"SCHILY.acl.access", b"user::rwx,user:mia:rwx,group::r-x,mask::rwx,other::r-x")], "the image has no user 'mia'"
    ),
    "a number out of range": (
        [(b"SCHILY.acl.access", b"user::rwx,user:4294967295:rwx,group::r-x,mask::rwx,other::r-x")], "no user '4294967295'"
    ),
    "a name whose number is out of range": (
        [(b"SCHILY.acl.access", b"user::rwx,user:bad:rwx,group::r-x,mask::rwx,other::r-x")], "the image has no user 'bad'"
    ),
    "nonsense for an ACL": ([(b"SCHILY.acl.access", b"\x1b]rubbish::")], r"'\x1b]rubbish::' is not understood"),
    "a default ACL of a file": ([(b"SCHILY.acl.default", b"user::rwx")], "system.posix_acl_default: only a directory has"),
    "a binary default ACL of a file": ([(XATTR + b"system.posix_acl_default", NAMED)], "only a directory has a default ACL"),
    "capabilities that are none": ([(XATTR + b"security.capability", b"\1\0\0\2")], "not a valid set of capabilities"),
    "capabilities of another size": ([(XATTR + b"security.capability", CAPABILITIES + bytes(4))], "not a valid set"),
    "an ACL of another system": ([(XATTR + b"system.nfs4_acl", b"1")], "system.nfs4_acl: Linux has no such attribute"),
    "data of small files as ext4 has it": ([(XATTR + b"system.data", b"1")], "system.data: Linux has no such attribute"),
}  # fmt: skip


@needs_e2fsck
@pytest.mark.parametrize("case", FAULTS)
def test_one_remark_names_file_layer_and_reason(tmp_path: Path, case: str) -> None:
    records, words = FAULTS[case]
    layer = with_records(*records, (XATTR + b"user.kept", b"2"))
    tree, remarks = fitted(ACCOUNTS, layer, tmp_path=tmp_path)
    assert at(tree, b"d/f").xattrs == {b"user.kept": b"2"}
    assert len(remarks) == 1
    assert remarks[0].text.startswith("/d/f (layer layer 1): ")
    assert remarks[0].text.endswith("left out")
    assert words in remarks[0].text
    assert remarks[0].text.isprintable()
    assert counts(remarks) == {"acl" if "ACL" in remarks[0].text else "xattr": 1}
    with pytest.raises(BadInput, match=r"^strict: /d/f "):
        refuse(remarks)


@needs_e2fsck
@pytest.mark.parametrize("kind", [b"2", b"3", b"4", b"6", b"5"])
def test_attributes_by_the_type_of_the_inode(tmp_path: Path, kind: bytes) -> None:
    """As the kernel sets them: attributes of users of files and directories only, no ACL of a link, a default ACL of a directory."""
    records = [(XATTR + b"user.a", b"1"), (XATTR + b"system.posix_acl_access", NAMED), (XATTR + b"trusted.b", b"2")]
    records += [(XATTR + b"system.posix_acl_default", NAMED), (XATTR + b"security.capability", CAPABILITIES)]
    entry = header(b"n", kind, mode=0o775, major=1, minor=3, target=b"x" if kind == b"2" else b"")
    tree, remarks = fitted(pax(records) + entry, tmp_path=tmp_path)
    kept = {b"trusted.b", b"security.capability"}
    if kind != b"2":
        kept.add(b"system.posix_acl_access")
    if kind == b"5":
        kept |= {b"user.a", b"system.posix_acl_default"}
    assert set(at(tree, b"n").xattrs or {}) == kept
    assert sum(counts(remarks).values()) == 5 - len(kept)


def test_the_mode_counts_and_not_its_copy_in_an_acl(tmp_path: Path) -> None:
    """Runtimes set attributes first and the mode after that."""
    text = b"user::rwx,user:lisa:rw-,group::r-x,mask::rwx,other::r-x"
    records = [(XATTR + b"system.posix_acl_access", NAMED)], [(b"SCHILY.acl.access", text)]
    for record in records:
        tree, remarks = fitted(ACCOUNTS, pax(record) + file(b"f", mode=0o4610), tmp_path=tmp_path)
        found = (at(tree, b"f").xattrs or {})[b"system.posix_acl_access"]
        assert [permissions for _, permissions, _ in struct.iter_unpack("<HHI", found[4:])][::4] == [6, 0]
        assert struct.unpack_from("<HHI", found, 4 + 3 * 8)[:2] == (0x10, 1)  # the mask is the mode's group
        assert (remarks, at(tree, b"f").mode & 0o7777) == ([], 0o4610)
    tree, remarks = fitted(pax([(XATTR + b"system.posix_acl_access", acl(*MINIMAL))]) + file(b"f", mode=0o600))
    assert (remarks, at(tree, b"f").xattrs) == ([], None)


def test_names_in_acls_are_those_of_the_image(tmp_path: Path) -> None:
    """Of the whole image, so a later layer may bring them; root is 0 if nobody says so."""
    text = b"user::rwx\nuser:lisa:rwx\ngroup::r-x\nmask::rwx\nother::r-x\n"
    late = b"u::rwx,u:root:rwx,g::r-x,group:adm:r--,m::rwx,o:r-x"
    layer = pax([(b"SCHILY.acl.access", text), (b"SCHILY.acl.default", late)]) + directory(b"d", 0o775)
    tree, remarks = fitted(layer, ACCOUNTS, tmp_path=tmp_path)
    assert remarks == []
    found = at(tree, b"d").xattrs or {}
    assert found[b"system.posix_acl_access"] == NAMED
    assert found[b"system.posix_acl_default"][4:20] == struct.pack("<HHI", *MINIMAL[0]) + struct.pack("<HHI", 2, 7, 0)
    tree, remarks = fitted(with_records((b"SCHILY.acl.access", text.replace(b"lisa", b"root"))))  # no accounts at all
    assert remarks == []
    tree, remarks = fitted(with_records((b"SCHILY.acl.access", b"user::r--,group::r--,other::---")))
    assert (remarks, at(tree, b"d/f").xattrs) == ([], None)  # no more than the mode


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [(b"-6795696291", TIME_MIN), (b"25530335999", TIME_MAX), (b"%d" % (TIME_MAX + 1), TIME_MAX), (b"9" * 60, TIME_MAX),
     (b"-" + b"9" * 60 + b".5", TIME_MIN), (b"%d" % (TIME_MIN - 1), TIME_MIN), (b"-2147483648.5", TIME_MIN)],
)  # fmt: skip
def test_times_are_brought_into_range(tmp_path: Path, seconds: bytes, kept: int) -> None:
    entries = [file(b"d/f"), directory(b"d/f"), symlink(b"d/f", b"x"), header(b"d/f", b"6")]
    for entry in entries:
        tree, remarks = fitted(pax([(b"mtime", seconds)]) + entry, tmp_path=tmp_path)
        assert at(tree, b"d/f").mtime_ns == kept * 10**9
        assert [remark.text.partition(": the time ")[0] for remark in remarks] == ["/d/f (layer layer 0)"]
        assert counts(remarks) == {"time": 1}
    tree, remarks = fitted(pax([(b"mtime", seconds)]) + directory(b"./"))
    assert (tree.root.mtime_ns, len(remarks)) == (kept * 10**9, 1)
    assert remarks[0].text.startswith("/ (layer layer 0): the time ")


@needs_e2fsck
def test_times_in_headers(tmp_path: Path) -> None:
    _, remarks = fitted(file(b"f", mtime=-6795696291) + file(b"g", mtime=(1 << 63) - 1), tmp_path=tmp_path)
    assert [remark.times for remark in remarks] == [2]
    assert "/f (layer layer 0): the time -6795696291 s" in remarks[0].text
    assert "and 1 more like it" in remarks[0].text


def test_times_that_ext4_holds_are_kept() -> None:
    tree, remarks = fitted(pax([(b"mtime", b"%d.999999999" % TIME_MAX)]) + file(b"f") + file(b"g", mtime=TIME_MIN))
    assert remarks == []
    assert at(tree, b"f").mtime_ns == TIME_MAX * 10**9 + 999_999_999
    assert at(tree, b"g").mtime_ns == TIME_MIN * 10**9


def test_only_what_can_be_seen_is_told_and_by_the_layer_that_says_it() -> None:
    bad = [(XATTR + b"com.apple.x", b"1")]
    lower = (
        pax(bad) + file(b"hidden") + pax(bad) + file(b"gone") + pax(bad) + directory(b"d") + pax(bad) + directory(b"e")
    )
    upper = file(b"hidden") + file(b".wh.gone") + directory(b"d") + pax(bad) + directory(b"e")
    _, remarks = fitted(lower, upper)
    assert [remark.text.partition(":")[0] for remark in remarks] == ["/e (layer layer 1)"]
    assert remarks[0].times == 1


def test_one_remark_for_thousands_of_files() -> None:
    layer = b"".join(
        pax([(XATTR + b"com.apple.x", b"1"), (XATTR + b"com.apple.y", b"1")]) + file(b"f%d" % n) for n in range(2000)
    )
    _, remarks = fitted(layer + hard_link(b"again", b"f0"))
    assert len(remarks) == 1
    assert "/again (layer layer 0)" in remarks[0].text  # by a path of it
    assert remarks[0].text.endswith("and 3999 more like it")
    assert in_words(counts(remarks)) == "4000 xattr changed or left out"


@needs_e2fsck
def test_the_largest_attributes_go_first(tmp_path: Path) -> None:
    records = [(XATTR + b"user.%03d" % n, b"v" * n) for n in range(0, 250, 2)]
    tree, remarks = fitted(with_records(*records), tmp_path=tmp_path)
    kept = at(tree, b"d/f").xattrs or {}
    assert kept == {b"user.%03d" % n: b"v" * n for n in range(0, 2 * len(kept), 2)}
    assert remarks[0].times == 125 - len(kept) > 20
    records = [(XATTR + b"user.%04d" % n, b"") for n in range(300)]
    tree, remarks = fitted(with_records(*records))
    assert "a file has more than 256 attributes" in " ".join(remark.text for remark in remarks)


@needs_e2fsck
def test_a_hard_link_with_attributes(tmp_path: Path) -> None:
    layer = file(b"f") + pax([(XATTR + b"com.apple.x", b"1"), (XATTR + b"user.a", b"1")]) + hard_link(b"g", b"f")
    tree, remarks = fitted(layer, tmp_path=tmp_path)
    assert at(tree, b"f").xattrs == {b"user.a": b"1"}
    assert len(remarks) == 1


def test_nothing_is_said_of_usual_images() -> None:
    tree, remarks = fitted(ACCOUNTS + with_records((XATTR + b"security.selinux", b"x"), (XATTR + b"trusted.a", b"")))
    assert remarks == []
    assert len(at(tree, b"d/f").xattrs or {}) == 2
