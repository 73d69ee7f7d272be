"""The command line as people type it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootdisk import __version__
from rootdisk.cli.arguments import command_first
from rootdisk.errors import BadInput
from runner.cli import main, parser
from runner.commands.listing import _PS_FILTERS
from runner.machine import ports
from runner.options import values as options
from runner.sandbox.output import lines
from runner.sandbox.output.logs import Log, Reader
from tests.support.ports import free_port


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))


def said(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of an error."""
    assert main(words) == 125
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["boot", "IMG", "ls", "-l"], ["ls", "-l"]),
        (["run", "IMG", "--", "ls", "-l"], ["ls", "-l"]),
        (["run", "-e", "A=1", "--rm", "IMG", "--rm", "-e"], ["--rm", "-e"]),
        (["run", "--", "IMG", "ls"], ["ls"]),
        (["run", "IMG"], []),
        (["run", "IMG", "sh", "-c", "x", "--", "y"], ["sh", "-c", "x", "--", "y"]),
        (["run", "IMG", "-c", "x"], ["-c", "x"]),
    ],
)
def test_everything_after_the_artifact_is_the_command(words: list[str], found: list[str]) -> None:
    parsed = parser().parse_args(words)
    assert (parsed.command, parsed.artifact) == ("boot", "IMG")
    assert options.program(parsed.program, {"-e", "--rm"}, "ARTIFACT") == found


def test_options_behind_the_artifact_as_older_runners_took_them(capfd: pytest.CaptureFixture[str]) -> None:
    assert "put options before ARTIFACT" in said(capfd, "boot", "oci:none:1", "-e", "A=1", "--", "ls")


def test_options_before_the_command() -> None:
    assert command_first(["--debug", "--ca-file", "f", "ps", "-a"], ["--ca-file"]) == [
        "ps",
        "--debug",
        "--ca-file",
        "f",
        "-a",
    ]
    assert command_first(["--version"]) == ["--version"]
    assert command_first(["--debug"]) == ["--debug"]
    assert command_first([]) == []


def test_global_options_work(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "ps"]) == 0
    assert json.loads(capfd.readouterr().out) == []
    for words in (["--version"], ["-v"]):
        with pytest.raises(SystemExit):
            main(words)
        assert capfd.readouterr().out == f"runner {__version__}\n"
    with pytest.raises(SystemExit):
        main(["help", "ps"])
    assert "usage: runner ps" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["boot"], "missing: ARTIFACT: see runner boot --help"),
        (["exec"], "missing: NAME: "),
        (["cp", "a"], "missing: TARGET: "),
        (["boot", "--nmae", "x", "IMG"], "did you mean --name?"),
        (["ps", "--filter", "nme=x"], "KEY is one of name"),
        (["ps", "--filter", "status=dead"], "running, restarting, exited"),
        (["ps", "-n", "0"], "--last 0"),
        (["logs", "--tail", "few", "x"], "a number of lines, or all"),
        (["logs", "--since", "tomorrow", "x"], "write 10m"),
        (["rename", "a", "B"], "NEW 'B'"),
        (["rmi", "oci:none:1"], "is not in the store"),
        (["boot", "--pull", "never", "oci:none:1"], "is not in the store: runner pull"),
        (["start", "-i", "x"], "start -ai NAME"),
        (["boot", "--pull", "sometimes", "x"], "--pull: 'sometimes': write missing, always, never or lazy"),
        (["boot", "--network", "mynet", "x"], "--network: 'mynet': write user or none"),
        (["stop", "-t", "x", "y"], "--time: 'x' is not a number of whole seconds"),
        (["boot", "--network", "", "x"], "--network: '': write user or none"),
        (["boot", "--env-file", "", "x"], "--env-file: the name of a file is empty"),
        (["boot", "--cpus", "9" * 20, "x"], "has more than 18 digits"),
        (["prune", "--older-than", "-1"], "--older-than -1: 0 or more days"),
        (["boot", "-p", "80", "x"], "say which port of this host too"),
        (["boot", "-p", "127.0.0.1::80", "x"], "say which port of this host too"),
        (["boot", "-p", "8080:80/sctp", "x"], "a port is one of tcp"),
        (["boot", "-p", "80-82:80-82/tcp", "x"], "port by port"),
        (["boot", "-p", "localhost:80:80", "x"], "write the address as a number"),
        (["boot", "-p", "80:70000", "x"], "a port is a number from 1 to 65535"),
        (["login", "a/b"], "write HOST or HOST:PORT"),
        (["login", "--password-stdin", "127.0.0.1:1"], "--username"),
    ],
)
def test_errors_say_what_to_type(words: list[str], hint: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert hint in said(capfd, *words)


def test_ports_are_bound_first() -> None:
    with socket.socket() as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        port = free_port()
        sock.bind(("127.0.0.1", port))
        sock.listen()
        with pytest.raises(BadInput, match=f"port {port} is in use"):
            ports.check([("tcp", "127.0.0.1", port, 80)])
        datagrams.bind(("127.0.0.1", 0))
        other = datagrams.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {other}/udp is in use"):
            ports.check([("udp", "127.0.0.1", other, 80)])
    ports.check([("tcp", "127.0.0.1", port, 80)])
    with pytest.raises(BadInput, match=r"192\.0\.2\.1 is not an address of this host"):
        ports.check([("tcp", "192.0.2.1", port, 80)])


def test_a_log_has_times_that_older_runners_do_not_see(tmp_path: Path) -> None:
    log = Log(tmp_path / "output.log")
    before = time.time()
    log.write_frame(2, b"one\ntw")
    log.write_frame(3, b"bad\n")
    log.write_frame(2, b"o\nthree")
    found = list(Reader(log.path).timed_frames())
    assert [(kind, data) for _, kind, data in found] == [(2, b"one\ntw"), (3, b"bad\n"), (2, b"o\nthree")]
    assert all(before - 0.002 <= when <= time.time() for when, _, _ in found if when is not None)
    assert None not in [when for when, _, _ in found]
    pieces = list(lines.pieces(Reader(log.path), framed=True))
    assert [piece.data for piece in lines.last_lines(pieces, 2)] == [b"two\n", b"three"]
    assert [piece.data for piece in lines.last_lines(pieces, 0)] == []
    assert [piece.data for piece in lines.last_lines(pieces, None)] == [b"one\n", b"bad\n", b"two\n", b"three"]


@given(st.lists(st.tuples(st.sampled_from([2, 3]), st.text("ab\n", min_size=1, max_size=12))), st.integers(1, 5))
def test_the_last_lines_are_the_end_of_all_lines(output: list[tuple[int, str]], count: int) -> None:
    pieces = [lines.Piece(float(number), kind, text.encode()) for number, (kind, text) in enumerate(output)]
    assert lines.last_lines(pieces, count) == lines.last_lines(pieces, None)[-count:]


def test_names_are_found_as_by_docker() -> None:
    def found(pattern: str) -> list[str]:
        passes = _PS_FILTERS["name"](pattern)
        return [name for name in ("web", "web-2", "my-web") if passes(SimpleNamespace(name=name))]  # type: ignore[arg-type]

    assert found("web") == ["web", "web-2", "my-web"]
    assert found("^web$") == found("^/web$") == ["web"]
    assert found("^(my|web-).*") == ["web-2", "my-web"]
    with pytest.raises(BadInput, match=r"--filter name=.*not a regular expression"):
        found("web[")


@pytest.mark.parametrize("text", ["10m", "1h30m", "1.5s", "1700000000", "2025-06-01", "2025-06-01T10:00:00Z"])
def test_times(text: str) -> None:
    assert 0 < (lines.parse_time(text, "--since") or 0) <= time.time()


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("boot", ("shutil", "runner.sandbox.orders", "runner.sandbox.keeper.loop", "requests")),
        (
            "exec_cp",
            (
                "shutil",
                "hashlib",
                "runner.sandbox.keeper.loop",
                "runner.sandbox.routing.router",
                "runner.options.values",
            ),
        ),
    ],
)
def test_what_starts_a_sandbox_loads_no_more_than_it_needs(module: str, unwanted: tuple[str, ...]) -> None:
    """What a keeper needs when its guest runs is loaded while the guest starts."""
    code = f"import sys, runner.cli, runner.commands.{module}; print(*[m for m in {unwanted} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
