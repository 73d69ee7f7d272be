"""The guest's C in units, on this machine with sanitizers: records, users, environment, frames, paths; and what C and Python share."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagetool.guest.init import SOURCES
from rootdisk import records
from rootdisk.text import printable
from runner.channel import messages
from runner.channel.copies import stream
from tests.support.commands import ROOT

ROOM = ROOT / "imagetool/guest/c"
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", f"-I{ROOM}")
UNITS = ("log.c", "files.c", "records.c", "signals.c", "frames.c", "users.c", "program.c")
REDIRECTED = ("users.c", "program.c")
ID_MOST = 4294967294

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


class Driver:
    """driver.c, compiled; `root` has the account files."""

    def __init__(self, program: Path, root: Path) -> None:
        self._program = program
        self.root = root

    def __call__(self, *words: str, data: bytes = b"") -> bytes:
        done = subprocess.run(
            [self._program, *words],
            input=data,
            capture_output=True,
            env={**os.environ, "ROOT": str(self.root)},
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def lines(self, *words: str) -> list[str]:
        return self(*words).decode().splitlines()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("units")
    flags = [*FLAGS, "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    objects = []
    for name in UNITS:
        redirected = ["-Dread_file=read_below"] if name in REDIRECTED else []
        objects.append(str(folder / f"{name}.o"))
        subprocess.run(["gcc", *flags, *redirected, "-c", str(ROOM / name), "-o", objects[-1]], check=True)
    program = folder / "driver"
    subprocess.run(["gcc", *flags, str(Path(__file__).with_name("driver.c")), *objects, "-o", str(program)], check=True)
    return program


@pytest.fixture
def driver(compiled: Path, tmp_path: Path) -> Driver:
    (tmp_path / "etc").mkdir()
    return Driver(compiled, tmp_path)


def test_analyzer(tmp_path: Path) -> None:
    """gcc's analyzer finds nothing in any unit. It finds a fault that is put there."""
    fault = tmp_path / "fault.c"
    fault.write_text("#include <stdlib.h>\nvoid f(char *p, int n) { free(p); if (n > 3) free(p); }\n")
    analyze = ["gcc", *FLAGS, "-fanalyzer", "-Werror", "-c", "-o", "/dev/null"]
    assert subprocess.run([*analyze, fault], capture_output=True).returncode
    for name in SOURCES:
        done = subprocess.run([*analyze, ROOM / name], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[:4000]


def test_only_main_ends_the_machine() -> None:
    """power_off() is main's, and no function of a frame, an exec, a volume or an image file ends the process."""
    for name in SOURCES:
        text = (ROOM / name).read_text()
        assert "die(" not in text
        calls = text.count("power_off(") - text.count(" power_off(enum ending ending) {")
        assert calls == (1 if name == "init.c" else 0)
        assert ("exit(" in text) == (name in {"spawn.c", "configure.c", "pack.c", "unpack.c"})  # in children, in copies


def test_one_function_writes_messages() -> None:
    """So that none has an image's names as they are. pack and unpack talk to the runner, which escapes what it gets."""
    for name in SOURCES:
        text = (ROOM / name).read_text()
        writes = "dprintf(2" in text or "fprintf(stderr" in text or "perror(" in text
        assert writes == (name in {"log.c", "pack.c", "unpack.c"}), name


SHOWN_AS_IT_IS = st.characters(categories=("L", "N", "P", "S"), max_codepoint=0x2000) | st.sampled_from("€日本語😀")
NEVER_SHOWN = st.sampled_from(
    [chr(n) for n in range(1, 32)] + list("\x7f\x80\x9b\xa0\xad\u200b\u202e\u2028\u2066\ufeff\U000e0001\\")
)


@given(
    text=st.text(SHOWN_AS_IT_IS | NEVER_SHOWN, max_size=40),
    tail=st.sampled_from([b"", b"\xff\xc3", b"\xe2\x82", b"\xc0\x80"]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_messages_are_escaped_as_by_the_runner(driver: Driver, text: str, tail: bytes) -> None:
    """Terminal escapes, line ends, what turns a line round, and bytes that are not UTF-8."""
    word = text.encode() + tail
    assert driver("escape", "4096", os.fsdecode(word)).decode() == printable(word)


def test_a_long_message_ends_after_a_whole_character(driver: Driver) -> None:
    assert driver("escape", "8", "abc\x1b[31m").decode() == "abc\\x1b"
    assert driver("escape", "7", "abc\x1b[31m").decode() == "abc"
    assert driver("escape", "6", "abcd\u20ac").decode() == "abcd"


def test_both_sides_have_the_same_numbers(driver: Driver) -> None:
    found = dict(line.split(" ", 1) for line in driver.lines("format"))
    in_c = {name: int(value) for name, value in found.items() if name.isupper()}
    assert in_c == {name: getattr(messages, name) for name in in_c}
    of_streams = messages.STREAMS_FROM_GUEST | messages.STREAMS_TO_GUEST
    assert set(in_c.values()) == messages.FROM_GUEST | messages.TO_GUEST | of_streams
    assert found["version"] == str(messages.CHANNEL_VERSION)
    assert found["header"] == str(messages.HEADER.size)
    assert found["window"] == str(messages.WINDOW)
    assert found["frame-max"] == str(messages.PAYLOAD_MAX)
    assert [found[name] for name in ("powered-off", "halted", "rebooted")] == [
        str(n) for n in sorted(messages.POWER_WORDS)
    ]


def _fields(form: str, names: list[str]) -> dict[str, str]:
    """Offset and size of each field of a little-endian struct without padding."""
    found, at = {}, 0
    for letter, name in zip(form.lstrip("<"), names, strict=True):
        size = struct.calcsize("<" + letter)
        found[name] = f"{at} {size}"
        at += size
    return found


def test_both_sides_have_the_same_entries(driver: Driver) -> None:
    found = dict(line.split(" ", 1) for line in driver.lines("format"))
    heads = _fields(
        stream._HEAD.format, [f"head.{name}" for name in ("kind", "zero", "name", "target", "mode", "time", "size")]
    )
    extents = _fields(stream._EXTENT.format, ["extent.offset", "extent.length"])
    assert {name: value for name, value in found.items() if "." in name} == heads | extents
    assert (found["head"], found["extent"]) == (str(stream._HEAD.size), str(stream._EXTENT.size))
    assert (found["name-most"], found["part-most"]) == (str(stream.NAME_MAX_BYTES), str(stream.PART_MAX_BYTES))
    assert (found["extents-most"], found["piece-most"]) == (str(stream.EXTENTS_MAX), str(stream.PIECE_BYTES))
    assert (found["file-most"], found["tail-failed"]) == (str(stream.FILE_MAX_BYTES), str(stream._FAILED))
    assert found["hello"] + "\n" == stream.HELLO.decode()


PASSWD = """\
root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:App:/home/app:/bin/sh
1234:x:77:78::/named-by-a-number:
big:x:4294967296:0::/:
least:x:4294967294:4294967294::/least:
most:x:4294967295:0::/:
minus:x:-1:0::/:
empty:x::0::/:
biggroup:x:5:4294967296::/:
short:x:9
nohome:x:10:10:::
app:x:0:0:the second of that name:/root:
crlf:x:11:11::/crlf:/bin/sh\r
"""
GROUP = """\
root:x:0:
staff:x:50:app,other
wheel:x:10:other,app
bigstaff:x:4294967296:victim
big:x:4294967296:
:x:60:app
nearly:x:70:appp,ap
1000:x:80:
+nis:::app
noid:x::app
text:x:0x5:app
"""
USERS = {
    "": "0 0 [0] /root",
    "root": "0 0 [0] /root",
    "0": "0 0 [0] /root",
    "app": "1000 1001 [1001 50 10 60] /home/app",
    "1000": "1000 1001 [1001 50 10 60] /home/app",
    "01000": "1000 1001 [1001 50 10 60] /home/app",
    "app:": "1000 1001 [1001 50 10 60] /home/app",
    "app:staff": "1000 50 [50] /home/app",
    "app:50": "1000 50 [50] /home/app",
    "app:9999": "1000 9999 [9999] /home/app",
    "app:1000": "1000 80 [80] /home/app",
    "1234": "77 78 [78] /named-by-a-number",
    "55": "55 0 [0] /",
    "55:staff": "55 50 [50] /",
    ":staff": "0 50 [50] /root",
    "nohome": "10 10 [10] /",
    "crlf": "11 11 [11] /crlf",
    "least": "4294967294 4294967294 [4294967294] /least",
    "4294967294": "4294967294 4294967294 [4294967294] /least",
    "nobody-here": "error: the image has no user nobody-here",
    "app:nothing": "error: the image has no group nothing",
    "-1": "error: the image has no user -1",
    "+5": "error: the image has no user +5",
    " 5": "error: the image has no user  5",
    "0x10": "error: the image has no user 0x10",
}
BAD_USERS = (
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "9" * 300,
    "big",
    "most",
    "minus",
    "empty",
    "biggroup",
    "short",
)
BAD_GROUPS = ("app:4294967295", "app:4294967296", "0:18446744073709551616", "app:big", "victim2:big")


def test_users(driver: Driver) -> None:
    (driver.root / "etc/passwd").write_text(PASSWD)
    (driver.root / "etc/group").write_text(GROUP)
    assert dict(zip(USERS, driver.lines("user", *USERS), strict=True)) == USERS


def test_ids_that_do_not_fit(driver: Driver) -> None:
    """None becomes another id, and root least of all."""
    (driver.root / "etc/passwd").write_text(PASSWD + "victim:x:7:7::/:\nvictim2:x:7:7::/:\n")
    (driver.root / "etc/group").write_text(GROUP)
    for text in (*BAD_USERS, *BAD_GROUPS, "victim"):
        (said,) = driver.lines("user", text)
        assert said.startswith("error: "), (text, said)
        assert "4294967294" in said, said


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(-(1 << 70), 1 << 70), shape=st.sampled_from(["{}", "{}:0", "0:{}", "00{}"]))
def test_any_id(driver: Driver, number: int, shape: str) -> None:
    (said,) = driver.lines("user", shape.format(number))
    if said.startswith("error"):
        assert not 0 <= number <= ID_MOST or (number < 0 and "00" in shape)
    else:
        uid, gid = said.split()[:2]
        assert (gid if shape.startswith("0:") else uid) == str(number)


def test_accounts_that_are_no_files(driver: Driver) -> None:
    """A FIFO is not waited for, a large file is not read into memory."""
    os.mkfifo(driver.root / "etc/passwd")
    assert "not a plain file" in driver.lines("user", "app")[0]
    (driver.root / "etc/passwd").unlink()
    with (driver.root / "etc/passwd").open("wb") as file:
        file.truncate(9 << 20)
    assert "File too large" in driver.lines("user", "app")[0]
    (driver.root / "etc/passwd").unlink()
    (driver.root / "etc/passwd").mkdir()
    assert driver.lines("user", "app")[0].startswith("error")


def test_many_groups(driver: Driver) -> None:
    (driver.root / "etc/passwd").write_text("app:x:1:1::/:\n")
    lines = [f"g{n}:x:{n}:app" for n in range(2, 65537)]
    (driver.root / "etc/group").write_text("\n".join(lines[:999]))
    assert driver.lines("user", "app") == [f"1 1 [{' '.join(map(str, range(1, 1001)))}] /"]
    (driver.root / "etc/group").write_text("\n".join([*lines, "one-more:x:0:app"]))
    assert "more than 65536 groups" in driver.lines("user", "app")[0]


SIGNALS = {
    "SIGTERM": 15, "TERM": 15, "SIGKILL": 9, "SIGWINCH": 28, "QUIT": 3, "SIGUSR1": 10, "SIGPWR": 30, "SIGCHLD": 17, "SIGSYS": 31,
    "9": 9, "64": 64, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMIN+3": 37, "RTMIN+30": 64, "RTMAX": 64, "SIGRTMAX-3": 61, "37": 37,
    "0": 0, "65": 0, "4294967305": 0, "-9": 0, "SIGRTMIN+31": 0, "RTMIN+": 0, "RTMIN3": 0, "RTMAX-31": 0, "": 0, "SIGSIGTERM": 0,
    "term": 15, "sigquit": 3, "SigRtMin+3": 37, "rtmax-1": 63, "sigsigterm": 0,
}  # fmt: skip


def test_signals_have_the_kernel_s_numbers(driver: Driver) -> None:
    found = dict(zip(SIGNALS, map(int, driver.lines("signal", *SIGNALS)), strict=True))
    assert found == SIGNALS


def test_who_is_process_1_by_its_name(driver: Driver) -> None:
    yes = [
        "/sbin/init",
        "/init",
        "/usr/bin/tini",
        "tini",
        "/lib/systemd/systemd",
        "/usr/bin/dumb-init",
        "/bin/s6-svscan",
    ]
    no = ["/bin/sh", "/usr/bin/tinit", "/init/run", "python3", "/usr/sbin/nginx", ""]
    assert [line != "0" for line in driver.lines("first", *yes, *no)] == [True] * len(yes) + [False] * len(no)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(
        st.tuples(
            st.text("abcdefgh-", min_size=1, max_size=12), st.binary(max_size=40).map(lambda b: b.replace(b"\0", b""))
        ),
        max_size=20,
    )
)
def test_records(driver: Driver, pairs: list[tuple[str, bytes]]) -> None:
    data = records.pack(pairs)
    assert driver("records", data=data) == data
    assert driver("records", data=data + b"cut=off") == data


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from(["", "1", "=", "x=y"])), max_size=30))
def test_environment(driver: Driver, pairs: list[tuple[str, str]]) -> None:
    """Of each name the last value, in the place of the first."""
    data = records.pack([("env", f"{name}={value}".encode()) for name, value in pairs])
    expected = "".join(f"{name}={value}\0" for name, value in dict(pairs).items()).encode()
    assert driver("environment", data=data) == expected


def _heard(data: bytes) -> Iterator[str]:
    decoder = messages.Decoder(range(256), messages.PAYLOAD_MAX)
    decoder.add(data)
    while (found := decoder.take()) is not None:
        if found[0] != messages.INVALID or found[2]:
            yield f"{found[0]} {found[1]} {len(found[2])} {found[2].hex()}"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.lists(st.tuples(st.integers(1, 255), st.integers(0, 65535), st.binary(max_size=50)), max_size=12),
    too_long=st.booleans(),
    cut=st.integers(0, 20),
    piece=st.integers(1, 100),
)
def test_frames(driver: Driver, frames: list[tuple[int, int, bytes]], too_long: bool, cut: int, piece: int) -> None:
    """Both sides hear the same frames; one that is too long is skipped."""
    parts = [messages.frame(kind, payload, session) for kind, session, payload in frames]
    if too_long:
        parts.insert(len(parts) // 2, messages.frame(2, bytes(messages.PAYLOAD_MAX + 1)))
        piece *= 600  # less than a pipe takes
    data = b"".join(parts)
    data = data[: len(data) - cut] if cut else data
    assert driver("frames", str(piece), data=data).decode().splitlines() == list(_heard(data))


def test_places_are_found_inside_the_root(driver: Driver) -> None:
    """Links of an image are followed inside it, and what is missing is made there."""
    root = driver.root / "image"
    root.mkdir()
    for name, target in {
        "run": "/var/run", "etc": "/nix/store/none/etc", "dev": "mnt/dev", "up": "../../../../outside", "a": "b", "b": "a",
        "chain": "run/x/../y", "slash": "/", "dot": ".",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    (root / "file").write_text("")
    (root / "plain/dir").mkdir(parents=True)
    for path, kind, inside in (
        ("/run", "d", "var/run"), ("/etc/hosts", "f", "nix/store/none/etc/hosts"), ("/dev/pts", "d", "mnt/dev/pts"),
        ("/up", "d", "outside"), ("/chain", "d", "var/run/y"), ("/slash/plain/dir", "d", "plain/dir"), ("/dot/plain", "d", "plain"),
        ("/plain/../../../x/", "d", "x"), ("//plain//./dir", "d", "plain/dir"), ("/file", "f", "file"), ("", "d", ""), ("/", "d", ""),
    ):  # fmt: skip
        assert driver.lines("place", str(root), path, kind) == [str(root / inside)], path
        assert (root / inside).is_file() == (kind == "f")
    for path, kind, why in (
        ("/a", "d", "Too many"), ("/file", "d", "Not a directory"), ("/file/x", "d", "Not a directory"),
        ("/" + "n" * 256, "d", "too long"), ("/" + "n/" * 3000, "d", "too long"),
    ):  # fmt: skip
        assert why in driver.lines("place", str(root), path, kind)[0], path
    assert not (driver.root / "outside").exists()
