"""What people meet at a terminal: help, hints, progress, quiet; and completion in the shells themselves."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagetool.parser import parser as command_line
from rootdisk.cli.arguments import subparsers
from tests.support.commands import ROOT, run
from tests.support.layouts import write_layout
from tests.support.tars import END, file

COMMANDS = subparsers(command_line())
# Every bar at once, so that no test waits for one.
EAGER = (
    "import sys; from imagetool import progress; progress.QUIET_S = 0; from imagetool.cli import main; sys.exit(main())"
)


def on_terminal(argv: list[str], typed: bytes = b"", until: bytes = b"", **env: str) -> bytes:
    """What `argv` writes to a terminal of its own, until it ends or has written `until`."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(argv[0], argv, {**os.environ, "TERM": "xterm", "COLUMNS": "100", **env})
    said = b""
    try:
        os.write(terminal, typed)
        while select.select([terminal], [], [], 30)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # Linux's way to say that nobody has it open any more
                break
            said += piece
            if not piece or (until and until in said):
                break
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return said


@pytest.fixture
def build(tmp_path: Path) -> list[str]:
    """Arguments of a build that takes a moment."""
    write_layout(tmp_path / "layout", "t", [file(b"f%d" % n, os.urandom(4 << 20)) + END for n in range(3)])
    return ["build", "--platform", "linux/amd64", f"oci:{tmp_path}/layout:t", f"oci:{tmp_path}/out:1"]


def test_bars_on_a_terminal_and_one_line_at_the_end(build: list[str], tmp_path: Path) -> None:
    env: dict[str, Any] = {"ROOTDISK_CACHE": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    (ROOT / "cache/kernels").mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache/kernels").symlink_to(ROOT / "cache/kernels")
    said = on_terminal([sys.executable, "-c", EAGER, *build], **env).decode()
    assert "layer 1 of 3" in said
    assert "packing" in said
    assert "MB/s" in said or "?" in said
    assert "\x1b[" in said
    assert "sha256:" in said.splitlines()[-1]
    again = on_terminal([sys.executable, "-c", EAGER, *build, "--quiet"], **env).decode()
    assert again.startswith("sha256:")
    assert again.count("\n") == 1
    copy = ["copy", build[-1], f"oci-archive:{tmp_path}/a.tar:1"]
    said = on_terminal([sys.executable, "-c", EAGER, *copy], **env, NO_COLOR="1").decode()
    assert "publishing" in said
    assert "\x1b[3" not in said  # colours
    copy[-1] = f"oci-archive:{tmp_path}/b.tar:1"
    assert on_terminal([sys.executable, "-c", EAGER, *copy], **env, TERM="dumb").decode().strip().startswith("sha256:")


def test_nothing_but_results_where_there_is_no_terminal(build: list[str], tmp_path: Path) -> None:
    done = run("imagetool", *build, "--json", ROOTDISK_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)[0]
    keys = {"digest", "disk_size", "compressed", "chunks_new", "chunks_reused", "seconds"}
    assert keys <= value.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_are_right(name: str) -> None:
    parser = COMMANDS[name]
    assert {"--json", "--quiet"} <= set(parser._option_string_actions)
    examples = [line.strip() for line in (parser.epilog or "").splitlines()[1:]]
    assert examples
    for example in examples:
        assert example.startswith(f"imagetool {name} ")
        command_line().parse_args(shlex.split(example.partition(" > ")[0].partition("> ")[0])[1:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["biuld"], "did you mean build?"),
        (["build", "--platfrom", "x", "a", "b"], "did you mean --platform?"),
        (["ls", "--recursiv=1", "a"], "--recursive"),
        (["completion", "zhs"], "did you mean zsh?"),
        (["copy", "a"], "see imagetool copy --help"),
        ([], "see imagetool --help"),
    ],
)
def test_wrong_words(arguments: list[str], words: str) -> None:
    done = run("imagetool", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("imagetool: ")
    assert words in done.stderr


LINES = {
    "imagetool expl": {"explain"},
    "imagetool build --pl": {"--platform", "--plain-http"},
    "imagetool completion z": {"zsh"},
    "imagetool cat --json ima": {"images.toml", "imagetool"},
    "runner boot --net": {"--network"},
    "runner boot --network n": {"none"},
}


def script(tmp_path: Path, shell: str) -> str:
    for tool in ("imagetool", "runner"):
        done = run(tool, "completion", shell)
        assert (done.returncode, done.stderr) == (0, "")
        (tmp_path / f"_{tool}").write_text(done.stdout)
    return " ".join(f"source {tmp_path}/_{tool};" for tool in ("imagetool", "runner"))


@pytest.mark.parametrize("line", LINES)
def test_bash(tmp_path: Path, line: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    words = line.split()
    code = f"{script(tmp_path, 'bash')} COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _{words[0]}; "
    code += f'echo "${{COMPREPLY[@]:-$(compgen -f {words[-1]})}}"'
    done = subprocess.run([bash, "-uc", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert set(done.stdout.split()) == LINES[line]


@pytest.mark.parametrize("line", LINES)
def test_fish(tmp_path: Path, line: str) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("fish is not installed")
    code = f"{script(tmp_path, 'fish')} complete -C {line!r}"
    done = subprocess.run([fish, "--no-config", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    found = {row.split("\t")[0].rstrip("/") for row in done.stdout.splitlines()}
    word = line.split()[-1]
    assert {name for name in found if name.startswith(word)} == LINES[line]  # fish 4 gives others behind them


@pytest.mark.parametrize("line", [line for line, found in LINES.items() if len(found) == 1])
def test_zsh(tmp_path: Path, line: str) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("zsh is not installed")
    code = f"PS1=; autoload -U compinit; compinit -u -D; {script(tmp_path, 'zsh')} print rea''dy\n"
    (word,) = LINES[line]
    whole = f"{line.rpartition(' ')[0]} {word}".encode()
    typed = code.encode() + b"true " + b"\x15" + line.encode() + b"\t"
    assert whole in on_terminal([zsh, "-f", "-i"], typed, until=whole)
