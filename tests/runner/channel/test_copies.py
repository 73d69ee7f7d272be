"""`runner cp` against guests that send what they like: nothing is written outside of the target, and nothing is hidden."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import stat
import tarfile
import threading
import tracemalloc
from pathlib import Path

import pytest

from rootdisk.errors import BadInput, RootdiskError
from runner.channel import messages
from runner.channel.copies import beneath, command, contents
from runner.channel.copies.stream import HELLO
from runner.channel.messages import frame
from tests.support.copied_trees import tree
from tests.support.copy_streams import hostile
from tests.support.guests import END2, FakeGuest, entry1, entry2, sends
from tests.support.processes import open_files

DIR = entry1(b"d", b"", mode=0o755)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory to copy to, beside one that is not to be touched."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_text("kept")
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.mark.parametrize("contents", [False, True], ids=["new", "contents"])
@pytest.mark.parametrize("what", hostile())
def test_nothing_lies_outside(here: Path, what: str, contents: bool) -> None:
    stream = hostile(os.fsencode(here.parent / "outside"))[what]
    target = here if contents else here / "new"
    with pytest.raises(RootdiskError) as failed:
        command.copy_out(sends(stream).connect, "/x/." if contents else "/x", str(target))
    assert "\n" not in str(failed.value)
    assert tree(here.parent / "outside") == {"kept": b"kept"}
    assert not [name for name in os.listdir(here) if name.startswith(".rootdisk")]
    if target.is_symlink():
        pytest.fail("a link in place of what the user named")


@pytest.mark.parametrize("what", hostile())
def test_no_hostile_archive(what: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """What has come out until then has no member below a link, and no name that leads elsewhere."""
    with pytest.raises(RootdiskError):
        command.copy_out(sends(hostile()[what]).connect, "/x", "-")
    out = capfdbinary.readouterr().out
    if not out:
        return
    with tarfile.open(fileobj=io.BytesIO(out), mode="r|", errorlevel=2) as archive:
        kinds: dict[str, bool] = {}
        try:
            for member in archive:
                assert member.name == "x" or member.name.startswith("x/")
                assert ".." not in member.name.split("/")
                assert member.name not in kinds
                parent = member.name.rpartition("/")[0]
                assert not parent or kinds[parent]
                kinds[member.name] = member.isdir()
        except tarfile.TarError:
            pass  # cut off, as the copy failed


def test_a_second_copy_does_not_follow_what_the_first_has_brought(here: Path) -> None:
    outside = os.fsencode(here.parent / "outside")
    link = sends(entry1(b"l", b"", outside))
    folder = sends(DIR + entry1(b"f", b"escaped", data=b"x"))
    file = sends(entry1(b"f", b"", data=b"x"))
    for target in (here / "x", here):
        for guest in (link, folder, file, link, folder, file):
            try:
                command.copy_out(guest.connect, "/x", str(target))
            except RootdiskError:
                pass
    assert tree(here.parent / "outside") == {"kept": b"kept"}


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link", "directory"])
@pytest.mark.parametrize("nested", [False, True])
def test_only_files_are_replaced_by_files(here: Path, kind: str, nested: bool) -> None:
    path = here / "x" if nested else here / "target"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(os.path.relpath(path))
    elif kind == "device":
        if os.geteuid():
            pytest.skip("making a device needs root")
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    elif kind == "link":
        path.symlink_to("../outside/kept")
    else:
        path.mkdir()
    before = path.lstat()
    stream = DIR + entry1(b"f", b"x", data=b"new") if nested else entry1(b"f", b"", data=b"new")
    source = "/s/." if nested else "/s/x"
    if kind == "link" and not nested:  # the user has named what it leads to
        assert command.copy_out(sends(stream).connect, source, str(path)) == 0
        assert path.read_bytes() == b"new"
    elif kind == "directory" and not nested:
        assert command.copy_out(sends(stream).connect, source, str(path)) == 0
        assert (path / "x").read_bytes() == b"new"
    else:
        with pytest.raises(RootdiskError, match=kind.upper() if kind == "fifo" else kind):
            command.copy_out(sends(stream).connect, source, str(here if nested else path))
        assert tree(here.parent / "outside") == {"kept": b"kept"}
    assert stat.S_IFMT(path.lstat().st_mode) == stat.S_IFMT(before.st_mode)
    assert path.lstat().st_ino == before.st_ino


def test_modes_and_times(here: Path) -> None:
    stream = (
        entry1(b"d", b"", mode=0o6555, time=10**9)
        + entry1(b"f", b"a", mode=0o4755, time=(1 << 63) - 1)
        + entry1(b"f", b"b", mode=0o2711, time=-(1 << 63))
        + entry1(b"d", b"c", mode=0o7700, time=5)
        + entry1(b"f", b"c/d", time=7)
    )
    assert command.copy_out(sends(stream).connect, "/x", str(here / "new")) == 0
    modes = {name: stat.S_IMODE((here / "new" / name).stat().st_mode) for name in (".", "a", "b", "c", "c/d")}
    assert modes == {".": 0o555, "a": 0o755, "b": 0o711, "c": 0o1700, "c/d": 0o644}
    assert [(here / "new" / name).stat().st_mtime for name in (".", "c", "c/d")] == [10**9, 5, 7]


def test_what_the_guest_says_is_on_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = b"\x1b]0;title\x07: bad\0another\0"
    with pytest.raises(RootdiskError):
        command.copy_out(sends(DIR, 1, errors).connect, "/x", str(here))
    err = capsys.readouterr().err
    assert err == "runner: cp: \\x1b]0;title\\x07: bad\nrunner: cp: another\n"
    assert command.copy_out(sends(DIR, 0, b"/s: a socket, left out\0").connect, "/x", str(here)) == 0
    assert capsys.readouterr().err == "runner: cp: /s: a socket, left out\n"
    errors = b"".join(b"line %d\0" % n for n in range(1000))
    with pytest.raises(RootdiskError, match="980 more"):
        command.copy_out(sends(DIR, 1, errors).connect, "/x", str(here))


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("kind", [messages.STDOUT, messages.STDERR, messages.CREDIT, messages.READY])
def test_a_guest_that_floods(here: Path, direction: str, kind: int) -> None:
    """It reads nothing, and sends 64 MiB without asking: the client's memory stays as it was."""
    (here / "big").write_bytes(bytes(8 << 20))
    head = HELLO + entry2(b"d", b"") + entry2(b"f", b"a", size=1 << 30)[:-4]

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair()

        def flood() -> None:
            with theirs, contextlib.suppress(OSError):
                payload = bytes(4) if kind == messages.CREDIT else bytes(32 << 10)
                theirs.sendall(frame(messages.STDOUT, head))
                for _ in range((64 << 20) // (32 << 10)):
                    theirs.sendall(frame(kind, payload))

        threading.Thread(target=flood, daemon=True).start()
        return ours

    def copy() -> int:
        if direction == "in":
            return command.copy_in(connect, str(here / "big"), "/x")
        return command.copy_out(connect, "/x", str(here / "new"))

    tracemalloc.start()
    try:
        with pytest.raises(RootdiskError, match=r"more than it was allowed|has ended"):
            copy()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def old_init(argv: list[bytes]) -> tuple[bytes, int, bytes]:
    """One that knows version 1 only."""
    if argv[1] in (b"pack2", b"unpack2"):
        return b"", 125, b"rootdisk: init runs as process 1 of a virtual machine\n"
    if argv[1] == b"unpack":
        return b"", 0, b""
    return DIR + entry1(b"f", b"b", data=b"x" * 100_000, time=7) + entry1(b"f", b"a"), 0, b""


def test_older_inits(here: Path) -> None:
    guest = FakeGuest(old_init)
    assert command.copy_out(guest.connect, "/x", str(here)) == 0
    assert tree(here) == {"x": b"40000", "x/b": b"x" * 100_000, "x/a": b""}
    assert (here / "x/b").stat().st_mtime == 7
    (here / "x/holes").touch()
    os.truncate(here / "x/holes", 200_000)
    os.utime(here / "x/holes", (9, 9))
    os.utime(here / "x", (9, 9))
    os.utime(here / "x/a", (9, 9))
    assert command.copy_in(guest.connect, str(here / "x"), "/y") == 0
    guest.join()
    mode = stat.S_IMODE((here / "x/holes").stat().st_mode)
    assert guest.received == entry1(b"d", b"", mode=0o755, time=9) + entry1(b"f", b"a", time=9) + entry1(
        b"f", b"b", data=b"x" * 100_000, time=7
    ) + entry1(b"f", b"holes", data=bytes(200_000), time=9, mode=mode)
    assert [argv[1:] for argv in guest.started] == [
        [b"pack2", b"/x"],
        [b"pack", b"/x"],
        [b"unpack2", b"/y", b"x"],
        [b"unpack", b"/y", b"x"],
    ]
    os.mkfifo(here / "x/fifo")
    with pytest.raises(RootdiskError, match="older init"):
        command.copy_in(guest.connect, str(here / "x"), "/y")
    with pytest.raises(RootdiskError, match="older init"):
        command.copy_out(guest.connect, "/x", str(here), follow=True)


def test_an_init_that_does_not_say_what_it_knows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_HELLO_S", 0.2)
    (here / "f").write_text("text")
    os.utime(here / "f", (9, 9))
    guest = FakeGuest(lambda argv: (b"", 0, b""))
    assert command.copy_in(guest.connect, str(here / "f"), "/y") == 0
    mode = stat.S_IMODE((here / "f").stat().st_mode)
    assert guest.received == entry1(b"f", b"", data=b"text", time=9, mode=mode)


def test_steps_are_as_safe_as_openat2(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/link").symlink_to("b")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "file").touch()
    base = os.open(tmp_path, os.O_RDONLY)
    for opens in (beneath.open_directory, beneath.open_in_steps):
        for name in (b"a", b"a/b"):
            fd = opens(base, name)
            assert os.fstat(fd).st_ino == (tmp_path / os.fsdecode(name)).stat().st_ino
            os.close(fd)
        for name in (b"a/link", b"up", b"up/a", b"file", b"missing"):
            with pytest.raises(OSError):
                opens(base, name)
    for name in (b"..", b"a/../..", b"a\0b"):
        with pytest.raises(OSError):
            beneath.open_directory(base, name)
    before = open_files()
    for name in (b"a/link", b"a/b/c/d"):
        with pytest.raises(OSError):
            beneath.open_in_steps(base, name)
    assert open_files().items() <= before.items()
    os.close(base)


@pytest.mark.parametrize("target", ["-", "new"])
@pytest.mark.parametrize("stream", [b"", HELLO, HELLO + END2, HELLO[:3]])
def test_nothing_is_no_copy(here: Path, stream: bytes, target: str) -> None:
    """A guest that sends nothing and says that all went well."""
    with pytest.raises(RootdiskError, match=r"sent nothing|in the middle"):
        command.copy_out(sends(stream).connect, "/x", target if target == "-" else str(here / target))
    assert tree(here) == {}


def test_paths_that_are_empty(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    for copy, paths in ((command.copy_out, ("", ".")), (command.copy_in, (".", ""))):
        with pytest.raises(BadInput, match="the path in the sandbox is empty"):
            copy(sends(DIR).connect, *paths)
    with pytest.raises(BadInput, match="the path in the sandbox is empty"):
        contents.read_file(sends(DIR).connect, "", 1)
    with pytest.raises(BadInput, match="TARGET is empty"):
        command.copy_out(sends(DIR).connect, "/x", "")
    with pytest.raises(BadInput, match="SOURCE is empty"):
        command.copy_in(sends(DIR).connect, "", "/x")
    (here / "here").mkdir()
    monkeypatch.chdir(here / "here")
    guest = FakeGuest(lambda argv: (HELLO, 0, b""))
    for source, name in (("../here/../here", b"here"), ("sub/..", b"here"), ("..", b"here"), (".", b"."), ("./", b".")):
        assert command.copy_in(guest.connect, source, "/x") == 0
        assert guest.started[-1][1:] == [b"unpack2", b"/x", name]


def test_a_guest_is_found(here: Path) -> None:
    """The test's own guest: an honest copy succeeds."""
    guest = sends(
        DIR + entry1(b"d", b"a", mode=0o755) + entry1(b"f", b"a/b", data=b"x" * 300_000) + entry1(b"l", b"c", b"a")
    )
    assert command.copy_out(guest.connect, "/x", str(here)) == 0
    assert tree(here) == {"x": b"40000", "x/a": b"40000", "x/a/b": b"x" * 300_000, "x/c": b"120000"}
    assert guest.started == [[b"/.rootdisk/init", b"pack2", b"/x"]]
    assert isinstance(guest, FakeGuest)
