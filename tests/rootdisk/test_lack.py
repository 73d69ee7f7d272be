"""A process that gets no more memory or threads says so in one line, with real errors of Python."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import imagetool.cli
import runner.cli
from imagetool.commands import look
from rootdisk.cli.progress import Lines
from rootdisk.durable import read_file
from rootdisk.system.crew import Crew
from rootdisk.system.threads import for_each
from runner.commands import listing

TOO_LARGE = 1 << 46  # bytes of a thread's stack: more than a process has addresses


@pytest.fixture
def no_threads() -> Iterator[None]:
    before = threading.stack_size(TOO_LARGE)
    yield
    threading.stack_size(before)


def report(_: object = None) -> int:
    with Lines() as lines:
        lines.step("x")(0, 1)
    return 0


def crew(_: object = None) -> int:
    with Crew(3):
        return 0


def many(_: object = None) -> int:
    for_each(range(3), print, 2)
    return 0


def memory(_: object = None) -> int:
    return len(bytes(1 << 62))


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("command", [report, crew, many, memory])
@pytest.mark.parametrize("tool", ["runner", "imagetool"])
def test_one_line(
    tool: str, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = "not enough memory: " if command is memory else "cannot start another thread: "
    if tool == "runner":
        monkeypatch.setattr(listing, "images_command", command)
        assert runner.cli.main(["images"]) == 125
    else:
        monkeypatch.setattr(look, "inspect_command", command)
        assert imagetool.cli.main(["inspect", "x"]) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"{tool}: {wanted}")
    assert said.count("\n") == 1


def test_other_errors_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(listing, "images_command", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        runner.cli.main(["images"])


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """Before, the buffer had the size of the limit."""
    path = tmp_path / "small"
    path.write_bytes(b"abc")
    assert read_file(path, 1 << 60) == b"abc"
    assert read_file(path, 3) == b"abc"
    with pytest.raises(ValueError, match="is larger than 2 bytes"):
        read_file(path, 2)
    assert read_file(Path("/proc/self/status"), 1 << 20).startswith(b"Name:")
    with pytest.raises(ValueError, match="is larger than 10 bytes"):
        read_file(Path("/proc/self/status"), 10)
