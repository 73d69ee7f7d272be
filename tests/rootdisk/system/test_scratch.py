"""Directories for work in progress: those of dead processes go, others stay."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

import rootdisk.durable
import rootdisk.system.scratch
from rootdisk.durable import atomic_write
from rootdisk.system.scratch import scratch
from tests.support.commands import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from rootdisk.system.scratch import scratch
with scratch(Path(sys.argv[1]), ".disk-") as folder:
    (folder / "disk").write_text("x")
    print(folder.name, flush=True)
    time.sleep(60)
"""


def holder(place: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_what_a_killed_process_left_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    (dead, left), (alive, used) = holder(tmp_path), holder(tmp_path)
    others = (".disk-abcdefgh", ".disk-0123456789abcdef0", ".kernel-0123456789abcdef")
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".disk-00000000000000ff").symlink_to(tmp_path / others[0])
    dead.kill()
    assert dead.wait() == -signal.SIGKILL
    assert {left, used} < set(os.listdir(tmp_path))
    with scratch(tmp_path, ".disk-") as folder:
        assert not any(folder.iterdir())
        assert folder.stat().st_mode & 0o777 == 0o700
        assert set(os.listdir(tmp_path)) == {used, folder.name, *others, ".disk-00000000000000ff"}
    assert (tmp_path / used / "disk").read_text() == "x"
    alive.terminate()
    alive.wait()
    with pytest.raises(OSError, match="No such file"), scratch(tmp_path / "nosuch", ".disk-"):
        pass


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch(tmp_path, ".disk-") as folder:
            (folder / "deep/er").mkdir(parents=True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not os.listdir(tmp_path)


class Interrupt:
    """Raises SystemExit, as a handler of signals does, before the line with a number of those that run in some modules."""

    def __init__(self, at: int, *modules: ModuleType) -> None:
        self._left, self._files = at, {module.__file__ for module in modules}

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line":
            self._left -= 1
            if self._left == 0:
                sys.settrace(None)
                raise SystemExit(143)
        return self._trace


def interrupted(do: Callable[[Interrupt], None], *modules: ModuleType) -> Iterator[int]:
    """Interrupt `do` before its first line, then before its second, until it ends by itself; yield after each time."""
    for at in itertools.count(1):
        try:
            do(Interrupt(at, *modules))
        except SystemExit:
            yield at
        else:
            break


def test_a_signal_at_any_moment_leaves_no_directory(tmp_path: Path) -> None:
    def make(interrupt: Interrupt) -> None:
        with interrupt, scratch(tmp_path, ".work-"):
            sys.settrace(None)

    for at in interrupted(make, rootdisk.system.scratch):
        assert os.listdir(tmp_path) == [], at
    assert at > 10


def test_a_signal_at_any_moment_leaves_no_temporary_file(tmp_path: Path) -> None:
    def write(interrupt: Interrupt) -> None:
        with interrupt:
            atomic_write(tmp_path / "out", b"data")

    for at in interrupted(write, rootdisk.durable):
        assert {*os.listdir(tmp_path)} <= {"out"}, at
    assert at > 10
