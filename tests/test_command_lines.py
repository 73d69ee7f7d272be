"""Every argument of every command, of both tools, with what nobody should give: one clear line, or it works."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import imagetool.cli
import runner.cli
from rootdisk.cli.arguments import days, processors, seconds, subparsers, whole_number, whole_seconds
from tests.support.commands import ROOT
from tests.support.registry import QuietHandler, be_nobody, serve

OFTEN = ["\udcff", "a\nb\x1b[31m", "", "-1", "9" * 5000]
HOSTILE = [
    *("\udcff", "a\udcfe/b:c", "a\nb", "\x1b[31m", "", " ", "a:\udcff", "/\udcff:/\udcff", "x\ty"),
    *(
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1",
        "0",
        "99999999999999999999999",
        "1_0",
        "１２",
        " 5",
        "5 ",
        "0x10",
        "1e3",
        "²",
        "9" * 5000,
    ),
]
# Whatever each command needs beside, which itself is right.
PLAIN = {
    "artifact": "oci:none:1",
    "source": "oci:none:1",
    "target": "oci:none:2",
    "sources": "oci:none:1",
    "what": "oci:none:1",
    "a": "oci:none:1",
    "b": "oci:none:1",
    "file": "file",
    "path": "/etc",
    "place": "oci:none",
    "shell": "bash",
    "name": "nobody",
    "program": "true",
    "type": "text/plain",
    "new": "somebody",
    "registry": "127.0.0.1:9",
    "snapshot": "saved",
    "to": "dir:out",
}
TOOLS = {"runner": (runner.cli, 125), "imagetool": (imagetool.cli, 2)}
PARSERS = {tool: subparsers(module.parser()) for tool, (module, _) in TOOLS.items()}


def cases() -> Iterator[tuple[str, str, argparse.Action]]:
    for tool, parsers in PARSERS.items():
        for command, parser in parsers.items():
            if command == "run":  # another name of boot
                continue
            for action in parser._actions:
                if action.nargs != 0 and not action.choices and action.dest != "registry":
                    yield tool, command, action


def command_line(tool: str, command: str, action: argparse.Action, value: str) -> list[str]:
    parser = PARSERS[tool][command]
    words = [command]
    for other in parser._actions:
        if other.option_strings and (other.required or other.dest == action.dest):
            text = value if other.dest == action.dest else PLAIN[other.dest]
            words.append(f"{other.option_strings[-1]}={text}")
    if command != "completion":
        words.append("--")
    for other in parser._actions:
        if not other.option_strings and (
            other.dest == action.dest or other.nargs not in ("*", "?", argparse.REMAINDER)
        ):
            words.append(value if other.dest == action.dest else PLAIN[other.dest])
    return words


@pytest.mark.parametrize("values", [OFTEN, pytest.param(HOSTILE, marks=pytest.mark.nightly)], ids=["often", "all"])
@pytest.mark.parametrize(
    ("tool", "command", "action"), [pytest.param(*case, id=f"{case[0]}-{case[1]}-{case[2].dest}") for case in cases()]
)
def test_one_clear_line(
    tool: str,
    command: str,
    action: argparse.Action,
    values: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    for value in values:
        words = command_line(tool, command, action, value)
        status = TOOLS[tool][0].main(words)
        said = capfd.readouterr().err
        assert status in (0, 1, 2, 125), words
        assert said.count("\n") == (status != 0), (words, said)
        assert said.isprintable() or said[:-1].isprintable(), (words, said)
        assert len(said) < 1000, (words, said)
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "cache", "none"}


@pytest.mark.parametrize(
    ("tool", "command", "option"),
    [
        (tool, command, action.option_strings[-1])
        for tool, command, action in cases()
        if action.option_strings and str(action.metavar).partition("[")[0] in ("FILE", "DIR", "PATH", "FOLDER")
        and action.option_strings[-1] not in ("--workdir", "--tmpfs")  # of the guest
        and command != "doit"  # which reads images.toml first
    ],
)  # fmt: skip
def test_no_file_is_named_by_nothing(
    tool: str,
    command: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As by a variable of the shell that is not set: what asks for a token or certificate would go on without it."""
    monkeypatch.chdir(tmp_path)
    action = next(action for action in PARSERS[tool][command]._actions if option in action.option_strings)
    assert TOOLS[tool][0].main(command_line(tool, command, action, "")) == TOOLS[tool][1]
    assert "the name of a file is empty" in capfd.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["", "reg:0", "http://r.example", "\udcff", "a\nb.c", "u:p@r.example", "r.example/x", "[::1", "x", "a." * 3000],
)
def test_what_is_no_registry_for_doctor(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.cli.main(["doctor", name]) == 125
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err[:-1].isprintable()
    assert len(said.err) < 300


def test_doctor_sends_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither that of ~/.netrc, over plain HTTP at that, nor any other."""
    seen: list[str | None] = []

    class Registry(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            seen.append(self.headers.get("Authorization"))
            self.send(401, b"", WWW_Authenticate="Basic realm=x")

    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    be_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    with serve(Registry) as url:
        runner.cli.main(["doctor", url.removeprefix("http://")])
    assert "answers 401 over HTTP" in capfd.readouterr().out
    assert seen == [None]


@pytest.mark.parametrize("value", ["0", "-1", "-0.5", "0.0"])
def test_a_timeout_is_refused_before_anything_is_fetched(value: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.cli.main(["boot", f"--timeout={value}", "oci:none:1"]) == 125
    assert capfd.readouterr().err.startswith("runner: --timeout ")


LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0"},
    {"LC_ALL": "C.UTF-8"},
]


@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: "-".join(locale.values()))
@pytest.mark.parametrize("name", [b"\xc3\xbc", b"\xff"], ids=["utf8", "bytes"])
def test_names_in_any_locale(tmp_path: Path, locale: dict[str, str], name: bytes) -> None:
    """A place whose name has other letters than ASCII, or is not text at all: found, and said in one line."""
    place = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(place)
    env = {**os.environb, b"PYTHONPATH": os.fsencode(ROOT), b"ROOTDISK_STORE": place + b"/store"}
    env |= {os.fsencode(key): os.fsencode(value) for key, value in locale.items()}

    def run(*words: bytes | str) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [sys.executable, "-m", *words], env=env, cwd=place, stdin=subprocess.DEVNULL, capture_output=True
        )
        return done.returncode, done.stdout, done.stderr

    assert run("runner", "ps", "-a")[0] == 0
    assert os.path.isdir(place + b"/store/disks")
    status, _, said = run("runner", "pull", b"oci:" + place + b"/none:1")
    assert (status, said.count(b"\n"), b"Traceback" in said) == (125, 1, False)
    status, _, said = run("imagetool", "ls", place + b"/none", b"/" + name)
    assert (status, said.count(b"\n"), b"Traceback" in said) == (2, 1, False), said
    assert run("runner", "boot", b"--name=" + name, "oci:none:1")[0] == 125


NUMBERS = (whole_number, seconds, whole_seconds, days, processors)


def values_of(action: argparse.Action) -> tuple[str, str]:
    """Two different ones that it takes."""
    if action.choices:
        first, *_, last = map(str, action.choices)
        return first, last
    return ("1", "2") if action.type in NUMBERS else ("a", "b")


def test_of_an_option_given_twice_the_last_value_counts() -> None:
    """Of every option of every command, as in docker; or both values count."""
    seen = 0
    for tool, (module, _) in TOOLS.items():
        top = module.parser()
        for command, parser in subparsers(top).items():
            for action in (each for each in parser._actions if each.option_strings and each.nargs != 0):
                texts = values_of(action)
                words = command_line(tool, command, action, texts[0])
                (at,) = (n for n, word in enumerate(words) if word == f"{action.option_strings[-1]}={texts[0]}")
                words.insert(at + 1, f"{action.option_strings[-1]}={texts[1]}")
                parsed = top.parse_args(words if words[-1] != "--" else words[:-1])
                values = [action.type(text) if callable(action.type) else text for text in texts]
                wanted = values if isinstance(action, argparse._AppendAction) else values[1]
                assert getattr(parsed, action.dest) == wanted, words
                seen += 1
    assert seen > 150
