"""`runner cp` with the guest's own init, compiled for this machine with sanitizers: docker's rules, truth, hostile streams."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootdisk.errors import RootdiskError
from runner.channel.copies import command, reader
from runner.channel.copies.stream import HELLO, Incoming, Lost
from runner.channel.program import Program
from tests.support.commands import ROOT
from tests.support.copied_trees import described, make_tree, tree
from tests.support.copy_streams import hostile
from tests.support.examples import some
from tests.support.guests import END2, InitGuest, entry2

SANITIZER = 99


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A temporary directory that other users can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def copy(direction: str, init: Path, source: str, target: str, *, follow: bool = False) -> int:
    run = command.copy_out if direction == "out" else command.copy_in
    return run(InitGuest(init).connect, source, target, follow=follow)


# docs/runner.md, "Copies": source, target, what the target's side has then that is new; None: one error, and nothing changes.
ROWS: list[tuple[str, str, dict[str, bytes] | None]] = [
    ("f", "new", {"new": b"f"}),
    ("f", "new/", None),
    ("f", "new/.", None),
    ("f", "missing/new", None),
    ("f", "file", {"file": b"f"}),
    ("f", "file/", None),
    ("f", "dir", {"dir/f": b"f"}),
    ("f", "dir/", {"dir/f": b"f"}),
    ("f", "dir/.", {"dir/f": b"f"}),
    ("f", "dir/../dir", {"dir/f": b"f"}),
    ("f", "missing/../new", {"new": b"f"}),
    ("f", "ldir/../new", {"new": b"f"}),
    ("f", "lfile", {"file": b"f"}),
    ("f", "ldir", {"dir/f": b"f"}),
    ("f", "lmissing", {"made": b"f"}),
    ("f", "fifo", None),
    ("f/", "dir", None),
    ("f/.", "dir", None),
    ("d", "new", {"new": b"40000", "new/x": b"x"}),
    ("d", "new/", {"new": b"40000", "new/x": b"x"}),
    ("d/", "new", {"new": b"40000", "new/x": b"x"}),
    ("d/.", "new", {"new": b"40000", "new/x": b"x"}),
    ("d", "lmissing", {"made": b"40000", "made/x": b"x"}),
    ("d", "file", None),
    ("d", "lfile", None),
    ("d", "fifo", None),
    ("d", "missing/new", None),
    ("d", "dir", {"dir/d": b"40000", "dir/d/x": b"x"}),
    ("d/", "dir", {"dir/d": b"40000", "dir/d/x": b"x"}),
    ("d", "ldir", {"dir/d": b"40000", "dir/d/x": b"x"}),
    ("d/.", "dir", {"dir/x": b"x"}),
    ("d/.", "dir/", {"dir/x": b"x"}),
    ("d/./", "dir", {"dir/x": b"x"}),
    ("d/.", "dir/.", {"dir/x": b"x"}),
    ("d/.", "ldir", {"dir/x": b"x"}),
    ("d/../f", "dir", {"dir/f": b"f"}),
    ("d", "missing/..", {"d": b"40000", "d/x": b"x"}),
    ("ld/../f", "dir", {"dir/f": b"f"}),
    ("d/s/..", "dir", {"dir/d": b"40000", "dir/d/x": b"x"}),
    ("l", "dir", {"dir/l": b"120000"}),
    ("ld", "dir", {"dir/ld": b"120000"}),
    ("dangling", "dir", {"dir/dangling": b"120000"}),
    ("ld/", "dir", {"dir/ld": b"40000", "dir/ld/x": b"x"}),
    ("ld/.", "dir", {"dir/x": b"x"}),
    ("ld/x", "dir", {"dir/x": b"x"}),
    ("-L l", "dir", {"dir/l": b"f"}),
    ("-L l", "new", {"new": b"f"}),
    ("-L ld", "dir", {"dir/ld": b"40000", "dir/ld/x": b"x"}),
    ("-L ld", "new", {"new": b"40000", "new/x": b"x"}),
    ("-L dangling", "dir", None),
    ("missing", "dir", None),
    ("missing/", "dir", None),
    ("d", "busy", None),
]
MORE_ROWS: list[tuple[str, str, dict[str, bytes] | None]] = [
    ("f", "full", None),
    ("f", "busy/f", {"busy/f/f": b"f"}),
    ("f", "over", None),
    ("socket", "dir", None),
]


@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize(
    ("source", "target", "news"), ROWS + MORE_ROWS, ids=[f"{s}→{t}" for s, t, _ in ROWS + MORE_ROWS]
)
def test_dockers_rules(
    init: Path, tmp_path: Path, direction: str, source: str, target: str, news: dict[str, bytes] | None
) -> None:
    from_, to = tmp_path / "from", tmp_path / "to"
    (from_ / "d").mkdir(parents=True)
    (from_ / "f").write_text("f")
    (from_ / "d/x").write_text("x")
    (from_ / "l").symlink_to("f")
    (from_ / "ld").symlink_to("d")
    (from_ / "dangling").symlink_to("nothing")
    if source == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(os.path.relpath(from_ / "socket"))
    if "/s/" in source:
        (from_ / "d/s").mkdir()
        news = {**(news or {}), "dir/d/s": b"40000"}
    (to / "dir").mkdir(parents=True)
    (to / "busy/f").mkdir(parents=True)  # a directory that a file does not replace
    (to / "busy/d").write_text("a file that a directory does not replace")
    (to / "dir/old").write_text("old")
    (to / "over/f").mkdir(parents=True)
    (to / "file").write_text("old")
    (to / "lfile").symlink_to("file")
    (to / "ldir").symlink_to(to / "dir")
    (to / "lmissing").symlink_to("made")
    os.mkfifo(to / "fifo")
    if os.geteuid() == 0:
        os.mknod(to / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    else:
        (to / "full").symlink_to("/dev/full")
    before = tree(to)
    paths = f"{from_}/{source.removeprefix('-L ')}", f"{to}/{target}"
    if news is None:
        with pytest.raises((RootdiskError, OSError)):
            copy(direction, init, *paths, follow=source.startswith("-L"))
        assert tree(to) == before
    else:
        assert copy(direction, init, *paths, follow=source.startswith("-L")) == 0
        assert tree(to) == {**before, **news}


def rules() -> str:
    """ROWS as docs/runner.md has them."""
    lines = ["| SOURCE | TARGET | what is there then |", "|---|---|---|"]
    for source, target, news in ROWS:
        found = news or {}
        leaves = [name for name in found if not any(other.startswith(name + "/") for other in found)]
        words = [f"`{name}`" + (", a link" if found[name] == b"120000" else "") for name in leaves]
        lines.append(f"| `{source}` | `{target}` | {', '.join(words) or 'an error, and nothing changes'} |")
    return "\n".join(lines) + "\n"


def test_they_are_documented() -> None:
    assert rules() in (ROOT / "docs/runner.md").read_text("utf-8")


def test_our_links_are_not_followed(init: Path, tmp_path: Path) -> None:
    """Another process may exchange a directory that we have seen for a link."""
    source, secret, target = tmp_path / "from", tmp_path / "secret", tmp_path / "to"
    (source / "a").mkdir(parents=True)
    (source / "b").mkdir()
    secret.mkdir()
    target.mkdir()
    (secret / "file").write_text("secret")
    for name in ("a", "b"):
        (source / name / "file").write_text("mine")
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for name in ("a/file", "a"):
                path = source / name
                os.rename(path, source / "aside")
                path.symlink_to(secret if name == "a" else secret / "file")
                path.unlink()
                os.rename(source / "aside", path)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for number in range(40):
            for direction in ("in", "out"):
                with contextlib.suppress(RootdiskError, OSError):
                    copy(direction, init, str(source), f"{target}/{direction}{number}")
    finally:
        stop.set()
        thread.join()
    for path in target.rglob("*"):
        assert path.is_symlink() or path.is_dir() or path.read_text() != "secret", path


def test_a_link_is_not_what_the_user_has_named(init: Path, tmp_path: Path) -> None:
    """The next copy to that name would follow it. Into a sandbox it may be."""
    (tmp_path / "l").symlink_to("/etc")
    with pytest.raises(RootdiskError, match="cp -L"):
        copy("out", init, f"{tmp_path}/l", f"{tmp_path}/new")
    assert not (tmp_path / "new").is_symlink()
    assert copy("in", init, f"{tmp_path}/l", f"{tmp_path}/new") == 0
    assert (tmp_path / "new").readlink() == Path("/etc")


@pytest.mark.parametrize("direction", ["out", "in"])
def test_all_of_a_tree(init: Path, tmp_path: Path, direction: str) -> None:
    source, target = tmp_path / "tree", tmp_path / "copy"
    make_tree(source)
    assert copy(direction, init, str(source), str(target)) == 0
    assert described(target).keys() == described(source).keys()
    for name, what in described(source).items():
        if name != "fifo":
            assert described(target)[name] == what, name
    assert (target / "holes").stat().st_blocks * 512 < 1 << 20
    assert (target / "hole").stat().st_blocks == 0
    with (target / "holes").open("rb") as file:
        for at in (0, 5 << 30, 1 << 39):
            assert os.pread(file.fileno(), 20_001, at) == b"data" * 5000 + b"\0"
    if direction == "in":  # in the guest it is the user's own
        assert stat.S_IMODE((target / "below/program").stat().st_mode) == 0o4755
    assert copy(direction, init, f"{source}/.", str(target)) == 0, "over what is there"
    assert not [name for name in described(target) if "rootdisk" in name]


@pytest.mark.parametrize("direction", ["out", "in"])
def test_very_deep(init: Path, tmp_path: Path, direction: str) -> None:
    source = tmp_path / "from"
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    for _ in range(900):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
    os.close(fd)
    (tmp_path / "to").mkdir()
    assert copy(direction, init, f"{source}/.", f"{tmp_path}/to") == 0
    assert subprocess.check_output(["find", tmp_path / "to", "-type", "f"]).count(b"/d") == 900


@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize(
    "path",
    [
        "/proc/version",
        "/proc/cpuinfo",
        "/sys/kernel/notes",
        "/proc/self/attr/current",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/proc/filesystems",
    ],
)
def test_files_whose_size_says_nothing(init: Path, tmp_path: Path, direction: str, path: str) -> None:
    try:
        want = Path(path).read_bytes()
    except OSError:  # kernels differ: then it is an error like any other
        with pytest.raises(RootdiskError, match=path):
            copy(direction, init, path, str(tmp_path / "new"))
        return
    assert copy(direction, init, path, str(tmp_path / "new")) == 0
    found = (tmp_path / "new").read_bytes()
    assert found == want or path == "/proc/cpuinfo"
    assert len(found) > len(want) // 2


@pytest.mark.parametrize("direction", ["out", "in"])
def test_files_that_cannot_be_read(init: Path, tmp_path: Path, direction: str) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(RootdiskError, match="/proc/self/mem: "):
        copy(direction, init, "/proc/self/mem", f"{tmp_path}/new")
    assert os.listdir(tmp_path / "new") == []


def test_directories_that_cannot_be_read(init: Path, open_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    source = open_path / "from"
    for name in ("a", "secret", "z"):
        (source / name).mkdir(parents=True)
        (source / name / "file").write_text(name)
    (source / "z/secret").write_text("secret")
    (source / "z/secret").chmod(0o600)
    (source / "secret").chmod(0o700)
    want = ["a", "a/file", "z", "z/file"]
    with pytest.raises(RootdiskError, match="not everything"):
        command.copy_out(InitGuest(init, user=65534).connect, str(source), str(open_path / "out"))
    assert sorted(tree(open_path / "out")) == want
    err = capsys.readouterr().err
    assert f"{source}/secret: Permission denied" in err
    assert f"{source}/z/secret: Permission denied" in err
    (open_path / "in").mkdir()
    os.seteuid(65534)
    try:
        with pytest.raises(RootdiskError, match="not everything"):
            command.copy_in(InitGuest(init, user=0).connect, f"{source}/.", str(open_path / "in"))
    finally:
        os.seteuid(0)
    assert sorted(set(tree(open_path / "in")) - {"secret"}) == want
    err = capsys.readouterr().err
    assert f"{source}/secret: Permission denied" in err
    assert f"{source}/z/secret: Permission denied" in err


def test_sockets_are_left_out(init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/file").touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(tmp_path / "from/socket"))
    for direction in ("out", "in"):
        assert copy(direction, init, str(tmp_path / "from"), str(tmp_path / direction)) == 0
        assert os.listdir(tmp_path / direction) == ["file"]
        assert capsys.readouterr().err == f"runner: cp: {tmp_path}/from/socket: is a socket, left out\n"


@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_a_guests_file_that_changes(init: Path, tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    data = os.urandom(4 << 20)
    path.write_bytes(data)
    with InitGuest(init).connect() as sock:
        program = Program(sock, [b"init", b"pack2", os.fsencode(path)])
        incoming = Incoming(program)
        (entry,) = entries = iter([next(iter(incoming))])  # it waits now, as only so much may be on its way
        del entries
        found = bytearray()
        for offset, piece in incoming.data:
            assert offset == len(found)
            if not found:
                with path.open("ab") as file:
                    file.truncate(1 << 20) if change == "shorter" else file.write(b"more" * 50_000)
            found += piece
        program.finish()
    assert entry.size == len(data)
    if change == "longer":
        assert (bytes(found), incoming.is_whole, program.status) == (data + b"more" * 50_000, True, 0)
    else:
        assert (incoming.is_whole, program.status) == (False, 1)
        assert program.errors() == [os.fsencode(path) + b": became shorter while it was copied"]


def test_our_file_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    fd = os.open(path, os.O_RDONLY)
    pieces = reader._read_extents(fd, [(0, 1 << 20)])
    assert next(pieces)
    os.truncate(path, 100_000)
    assert next(pieces)
    with pytest.raises(Lost, match="shorter"):
        next(pieces)
    with path.open("ab") as file:
        file.write(b"more")
    assert list(reader._read_tail(fd, 100_000)) == [b"more"]
    os.close(fd)


def unpack(init: Path, stream: bytes, path: str, name: str, version: int = 2) -> subprocess.CompletedProcess[bytes]:
    environment = {"ASAN_OPTIONS": f"detect_leaks=0:exitcode={SANITIZER}", "UBSAN_OPTIONS": f"exitcode={SANITIZER}"}
    words = [init, "unpack2" if version == 2 else "unpack", path, name]
    return subprocess.run(words, input=stream, env=environment, capture_output=True, timeout=30)


@pytest.mark.parametrize("name", ["x", ".", ""], ids=["name", "contents", "archive"])
@pytest.mark.parametrize("what", hostile())
def test_the_init_keeps_to_the_target(init: Path, tmp_path: Path, what: str, name: str) -> None:
    """Entries are checked in the guest too."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_text("kept")
    (tmp_path / "here").mkdir()
    stream = hostile(os.fsencode(tmp_path / "outside"))[what]
    version = int(what[0])
    done = unpack(init, stream.removeprefix(HELLO), f"{tmp_path}/here", name, version)
    assert done.returncode in (0, 1), done.stderr.decode()
    assert tree(tmp_path / "outside") == {"kept": b"kept"}
    assert sorted(os.listdir(tmp_path)) == ["here", "outside"]
    assert not [path for path in tree(tmp_path / "here") if "rootdisk" in path]


parts = st.sampled_from([b"a", b"b", b"..", b".", b"", b"/", b"a/b", b"../outside/x", b"c" * 255, b"c" * 256, b"n\0l"])
names = st.lists(parts, max_size=4).map(b"/".join)
entries = st.builds(
    entry2,
    st.sampled_from([b"f", b"d", b"l", b"h", b"p", b"c", b"e", b"x"]),
    names,
    st.one_of(st.just(b""), names, st.just(b"../outside"), st.just(b"/")),
    mode=st.integers(0, 0o200000),
    time=st.integers(-(1 << 63), (1 << 63) - 1),
    size=st.one_of(st.none(), st.integers(0, 100_000), st.integers(0, (1 << 64) - 1)),
    data=st.binary(max_size=20),
    extents=st.one_of(st.none(), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 30)), max_size=3)),
    tail=st.lists(st.binary(max_size=9), max_size=2),
    state=st.sampled_from([0, 0, 0xFFFF_FFFF, 7]),
)
streams = st.tuples(st.lists(entries, max_size=8).map(b"".join), st.one_of(st.just(END2), st.binary(max_size=30))).map(
    lambda pair: entry2(b"d", b"") + pair[0] + pair[1]
)


@some
@given(stream=streams, name=st.sampled_from(["x", ".", ""]), version=st.sampled_from([1, 2]))
def test_the_init_takes_any_stream(init: Path, tmp_path: Path, stream: bytes, name: str, version: int) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        (Path(folder) / "outside").mkdir()
        (Path(folder) / "here").mkdir()
        done = unpack(init, stream, f"{folder}/here", name, version)
        assert done.returncode in (0, 1), done.stderr.decode(errors="replace")
        assert sorted(os.listdir(folder)) == ["here", "outside"]
        assert os.listdir(f"{folder}/outside") == []
        subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)


@some
@given(stream=streams, version=st.sampled_from([1, 2]), contents=st.booleans())
def test_this_machine_takes_any_stream(tmp_path: Path, stream: bytes, version: int, contents: bool) -> None:
    from tests.support.guests import sends

    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        folder = Path(name)
        (folder / "outside").mkdir()
        (folder / "here").mkdir()
        guest = sends((HELLO if version == 2 else b"") + stream)
        with contextlib.suppress(RootdiskError):
            command.copy_out(guest.connect, "/x/." if contents else "/x", f"{folder}/here")
        assert sorted(os.listdir(folder)) == ["here", "outside"]
        assert os.listdir(folder / "outside") == []
        for path in (folder / "here").rglob("*"):
            assert path.is_symlink() or not path.stat().st_mode & 0o6000
        subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)


def test_an_init_that_is_ended_leaves_nothing_half(init: Path, tmp_path: Path) -> None:
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    words = [init, "unpack2", str(tmp_path), "."]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # type: ignore[arg-type]
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.read(len(HELLO)) == HELLO
    process.stdin.write(entry2(b"d", b"") + entry2(b"f", b"a", size=1 << 20, data=bytes(1 << 19))[:-4])
    process.stdin.flush()
    deadline = threading.Event()
    for _ in range(200):
        if os.listdir(tmp_path):
            break
        deadline.wait(0.05)
    assert os.listdir(tmp_path)
    process.send_signal(1)
    assert process.wait(20) == 129
    assert os.listdir(tmp_path) == []
    process.stdin.close()
    process.stdout.close()
