"""`runner cp` to and from tar archives: what GNU tar makes is taken, what we make it reads, and hostile ones are one error."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rootdisk.errors import BadInput, RootdiskError
from runner.channel.copies import command
from runner.channel.copies.archive import read_tar
from runner.channel.copies.notes import Notes
from runner.channel.copies.stream import HELLO, Outgoing
from runner.channel.program import Program
from tests.support.copied_trees import described, make_tree, tree
from tests.support.examples import some
from tests.support.guests import FakeGuest, InitGuest, entry2, sends, stream2


def send(data: bytes, target: str, init: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """`runner cp - sandbox:TARGET`."""

    class Input:
        buffer = io.BufferedReader(io.BytesIO(data))

    monkeypatch.setattr("sys.stdin", Input)
    return command.copy_in(InitGuest(init).connect, "-", target)


def archive(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], end: bool = True) -> bytes:
    out = io.BytesIO()
    for member in members:
        info, data = member if isinstance(member, tuple) else (member, b"")
        if data:
            info.size = len(data)
        out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024 if end else 0)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def test_out_and_in_again(
    init: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "tree"
    make_tree(source)
    assert command.copy_out(InitGuest(init).connect, str(source), "-") == 0
    data = capfdbinary.readouterr().out
    assert len(data) < 5_000_000, "holes stay holes"
    assert len(data) % tarfile.RECORDSIZE == 0
    extracted = tmp_path / "tar"
    extracted.mkdir()
    subprocess.run(["tar", "-xp", "-C", extracted], input=data, check=True)
    again = tmp_path / "again"
    again.mkdir()
    assert send(data, str(again), init, monkeypatch) == 0
    for place in (extracted, again):
        assert (place / "tree/holes").stat().st_blocks * 512 < 1 << 20
        found = described(place / "tree")
        for name, (mode, size, what, time) in described(source).items():  # type: ignore[misc]
            assert found[name][:3] == (mode, size, what), name  # type: ignore[has-type, index]
            if name != "fifo":
                assert found[name][3] // 10**9 == time // 10**9, name  # type: ignore[has-type, index]
    assert not stat.S_IMODE((again / "tree/below/program").stat().st_mode) & 0o6000


@pytest.mark.parametrize("format_", ["v7", "ustar", "gnu", "oldgnu", "pax"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_gnu_tars_archives(
    init: Path, tmp_path: Path, format_: str, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "from"
    source.mkdir()
    (source / "file").write_text("text")
    os.link(source / "file", source / "other")
    (source / "link").symlink_to("file")
    (source / "folder").mkdir()
    with (source / "sparse").open("wb") as file:
        file.truncate(8 << 20)
        for at in range(0, 8 << 20, 1 << 18):
            os.pwrite(file.fileno(), b"x" * 5000, at)
    sparse = ["--sparse"] if format_ in ("gnu", "oldgnu", "pax") else []
    data = subprocess.check_output(["tar", "-c", f"--format={format_}", *sparse, "-C", source, "."])
    target = tmp_path / "to"
    target.mkdir()
    assert send(compress(data), str(target), init, monkeypatch) == 0
    assert tree(target) == tree(source)
    assert (target / "file").stat().st_ino == (target / "other").stat().st_ino
    if sparse:
        assert (target / "sparse").stat().st_blocks == (source / "sparse").stat().st_blocks


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_pax_sparse_versions(init: Path, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        os.pwrite(file.fileno(), b"data" * 5000, 1 << 29)
    words = ["tar", "-cS", "--format=pax", f"--sparse-version={version}", "-C", tmp_path, "sparse"]
    (tmp_path / "to").mkdir()
    assert send(subprocess.check_output(words), str(tmp_path / "to"), init, monkeypatch) == 0  # type: ignore[arg-type]
    assert (tmp_path / "to/sparse").stat().st_size == 1 << 30
    assert (tmp_path / "to/sparse").stat().st_blocks == (tmp_path / "sparse").stat().st_blocks


def test_members_without_parents(init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive(
        (member("a/b/c"), b"x"), member("a/b/hard", tarfile.LNKTYPE, "./a/b/c"), member("d/", tarfile.DIRTYPE)
    )
    (tmp_path / "to").mkdir()
    assert send(data, str(tmp_path / "to"), init, monkeypatch) == 0
    assert tree(tmp_path / "to") == {"a": b"40000", "a/b": b"40000", "a/b/c": b"x", "a/b/hard": b"x", "d": b"40000"}
    assert send(data, str(tmp_path / "to"), init, monkeypatch) == 0, "once more"
    assert [name for name in tree(tmp_path / "to") if "rootdisk" in name] == []
    for target in ("missing", "file"):
        (tmp_path / "file").touch()
        with pytest.raises(RootdiskError, match="directory"):
            send(data, str(tmp_path / target), init, monkeypatch)
    assert not (tmp_path / "missing").exists()


GLOBAL = tarfile.TarInfo.create_pax_global_header({"comment": "x" * 30_000})
HOSTILE = {
    "the parent": archive((member("../outside/escaped"), b"x")),
    "the parent, within": archive((member("a/../../outside/escaped"), b"x")),
    "absolute": archive((member("/tmp/escaped"), b"x")),
    "below a link": archive(member("a", tarfile.SYMTYPE, "/tmp"), (member("a/escaped"), b"x")),
    "below a link to the parent": archive(member("a", tarfile.SYMTYPE, "../outside"), (member("a/escaped"), b"x")),
    "a directory over a link": archive(
        member("a", tarfile.SYMTYPE, "/tmp"), member("a", tarfile.DIRTYPE), (member("a/escaped"), b"x")
    ),
    "through a hard link": archive(
        member("a", tarfile.SYMTYPE, "/tmp"), member("b", tarfile.LNKTYPE, "a"), (member("b/escaped"), b"x")
    ),
    "a hard link to the outside": archive(member("a", tarfile.LNKTYPE, "../outside/kept")),
    "an absolute hard link": archive(member("a", tarfile.LNKTYPE, "/tmp/kept")),
    "a hard link through a link": archive(member("a", tarfile.SYMTYPE, "/tmp"), member("b", tarfile.LNKTYPE, "a/kept")),
    "a file as the target": archive((member("."), b"x")),
    "a link as the target": archive(member(".", tarfile.SYMTYPE, "/tmp")),
    "a NUL": archive((member("a", pax_headers={"path": "a\0b"}), b"x")),
    "a long part": archive((member("a" * 300), b"x")),
    "a long name": archive((member("a/" * 3000 + "a"), b"x")),
    "an empty link": archive(member("a", tarfile.SYMTYPE, "")),
    "a long link": archive(member("a", tarfile.SYMTYPE, "b" * 5000)),
    "an infinite time": archive((member("a", pax_headers={"mtime": "inf"}), b"x")),
    "no time": archive((member("a", pax_headers={"mtime": "nan"}), b"x")),
    "a time of 10^400": archive((member("a", pax_headers={"mtime": "1e400"}), b"x")),
    "a size": archive(member("a", pax_headers={"size": str(1 << 60)})),
    "a size below 0": archive(member("a", pax_headers={"size": "-512"}), member("b")),
    "a device": archive(member("a", tarfile.CHRTYPE, devmajor=1 << 20)),
    "another kind": archive(member("a", b"M")),
    "no end": archive((member("a"), b"x"), end=False),
    "cut off in a file": archive((member("a"), b"x" * 2000))[:1500],
    "cut off in a header": archive((member("a"), b"x"), (member("b"), b"x"))[:1200],
    "a damaged header": archive((member("a"), b"x"), end=False) + b"x" * 512 + archive((member("b"), b"x")),
    "many headers before one": (tarfile.TarInfo.create_pax_global_header({"a": "b"})) * 3000 + archive(member("a")),
    "large global headers": GLOBAL * 5 + archive(member("a")),
    "a large header": archive(member("a", pax_headers={"comment": "x" * (5 << 20)})),
    "nothing": b"",
    "no archive": b"no archive" * 300,
    "gzip of nothing": gzip.compress(b""),
    "half a gzip": gzip.compress(archive((member("a"), os.urandom(100_000))))[:50_000],
    "half an xz": lzma.compress(archive((member("a"), os.urandom(100_000))))[:50_000],
    "half a zstd": zstandard.compress(archive((member("a"), os.urandom(100_000))))[:50_000],
    "sparse: parts that go back": archive(
        member("a", pax_headers={"GNU.sparse.map": "10,5,0,5", "GNU.sparse.size": "20", "GNU.sparse.numblocks": "2"})
    ),
    "sparse: a part outside": archive(
        member("a", pax_headers={"GNU.sparse.map": "10,50", "GNU.sparse.size": "20", "GNU.sparse.numblocks": "1"})
    ),
    "sparse: numbers without end": archive(
        (
            member("a", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}),
            b"9999999999\n" + b"1\n" * (3 << 20),
        )
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives(init: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, target = tmp_path / "outside", tmp_path / "to"
    outside.mkdir()
    target.mkdir()
    (outside / "kept").write_text("kept")
    data = HOSTILE[what]
    with pytest.raises(RootdiskError) as failed:
        send(data, str(target), init, monkeypatch)
    assert "\n" not in str(failed.value)
    assert tree(outside) == {"kept": b"kept"}
    assert sorted(os.listdir(tmp_path)) == ["outside", "to"]
    assert not Path("/tmp/escaped").exists()


def test_archives_that_inflate(init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MiB of one header in 250 KiB."""
    info = member("a", tarfile.XHDTYPE)
    info.size = 256 << 20
    head = info.tobuf(tarfile.GNU_FORMAT)
    data = zstandard.compress(head + bytes(256 << 20))
    (tmp_path / "to").mkdir()
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="4 MiB"):
            send(data, str(tmp_path / "to"), init, monkeypatch)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_many_members_take_no_memory() -> None:
    data = b"".join(archive(member(f"{n:06}"), end=False) for n in range(5000)) + bytes(1024)
    guest = FakeGuest(lambda argv: (HELLO, 0, b""))
    with guest.connect() as sock:
        program = Program(sock, [b"init", b"unpack2", b"/x", b""])
        outgoing = Outgoing(program, 2)
        source = io.BytesIO(data)
        tracemalloc.start()
        try:
            read_tar(source, outgoing, Notes())
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()


def test_what_is_lost_of_a_file_is_said(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    file = entry2(b"f", b"a", data=bytes(10), state=0xFFFF_FFFF)
    with pytest.raises(RootdiskError, match="x/a"):
        command.copy_out(sends(stream2(entry2(b"d", b""), file)).connect, "/x", "-")
    grown = entry2(b"f", b"a", data=b"first", tail=[b"more"])
    with pytest.raises(RootdiskError, match="x/a: grew"):
        command.copy_out(sends(stream2(entry2(b"d", b""), grown)).connect, "/x", "-")
    out = capfdbinary.readouterr().out
    with tarfile.open(fileobj=io.BytesIO(out[len(out) // 2 :])) as found:
        file_in_it = found.extractfile("x/a")
        assert file_in_it is not None
        assert file_in_it.read() == b"first"


@some
@given(
    data=st.one_of(
        st.binary(max_size=2000),
        st.tuples(st.sampled_from(sorted(HOSTILE)), st.integers(0, 3000), st.binary(min_size=1, max_size=8)),
    )
)
def test_any_archive(data: bytes | tuple[str, int, bytes]) -> None:
    if isinstance(data, tuple):
        what, at, patch = data
        whole = HOSTILE[what][:20_000]
        at = min(at, len(whole))
        data = whole[:at] + patch + whole[at + len(patch) :]
    guest = FakeGuest(lambda argv: (b"", 0, b""))
    with guest.connect() as sock:
        program = Program(sock, [b"init", b"unpack2", b"/x", b""])
        try:
            read_tar(io.BufferedReader(io.BytesIO(data)), Outgoing(program, 2), Notes())
        except RootdiskError:
            pass
