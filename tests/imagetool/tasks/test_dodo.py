"""The graph as its users meet it: doit in a process of its own, in a project directory of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagetool.receipts import Damaged
from imagetool.tasks import records
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Platform
from tests.support.commands import ROOT
from tests.support.layouts import write_layout
from tests.support.tars import END, directory

IMAGES = '[image.one]\nsource = "oci:layout:x"\n[image.two]\nsource = "oci:layout:y"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    place = tmp_path / "a project"
    place.mkdir()
    shutil.copy(ROOT / "dodo.py", place)
    (place / "images.toml").write_text(IMAGES)
    return place


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "doit", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def doit(project: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(project, *arguments)
    out, errors = process.communicate(timeout=300)
    return process.returncode, out, errors


def test_list_describes_every_task(project: Path) -> None:
    status, out, _ = doit(project, "list")
    assert status == 0
    tasks = dict(line.split(maxsplit=1) for line in out.splitlines())
    steps = {"demo", "init", "kernel", "resolve", "disk", "pack", "publish", "build", "check"}
    assert steps <= tasks.keys()
    assert all(description.endswith(".") for description in tasks.values())
    _, out, _ = doit(project, "list", "--all")
    assert "build:one" in out
    assert "build:two" in out


def test_loading_needs_nothing_heavy(project: Path) -> None:
    code = "import sys, dodo; print(*sorted({'oras', 'requests', 'zstandard', 'numpy', 'cryptography'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, b"\n")


@pytest.mark.parametrize("command", ["list", "build"])
def test_an_error_in_images_toml_is_one_line(project: Path, command: str) -> None:
    (project / "images.toml").write_text('[image.one]\nsorce = "x"\n')
    status, _, errors = doit(project, command)
    assert status != 0
    assert errors == "doit: images.toml:2:1: image.one.sorce: unknown key: did you mean source?\n"


def test_a_cache_that_cannot_be_written_is_one_line(project: Path) -> None:
    (project / "cache").write_text("in the way")
    status, _, errors = doit(project, "build")
    assert status != 0
    assert errors.startswith("doit: cannot write to ")
    assert errors.count("\n") == 1


def test_two_runs_wait_for_each_other(project: Path) -> None:
    (project / "cache").mkdir()
    with (project / "cache" / ".lock").open("w") as lock:
        lock.write("4242\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = start(project, "build")
        assert waiting.stderr is not None
        cache = project / "cache"
        assert waiting.stderr.readline() == f"waiting for process 4242, for the cache {cache}\n"
        assert waiting.poll() is None
        assert doit(project, "list")[0] == 0  # who only looks does not wait
        waiting.terminate()
        assert waiting.wait(120) == 143
        waiting.communicate()


def test_a_lock_that_is_a_link_is_not_followed(project: Path) -> None:
    (project / "cache").mkdir()
    (project / "precious").write_text("precious")
    for target in ("../precious", "../new"):
        (project / "cache" / ".lock").symlink_to(target)
        status, _, errors = doit(project, "build")
        assert status != 0
        assert errors == f"doit: lock {project / 'cache/.lock'}: is a symbolic link: remove it, or fix its owner\n"
        (project / "cache" / ".lock").unlink()
    assert (project / "precious").read_text() == "precious"
    assert not (project / "new").exists()


def test_a_directory_in_the_place_of_what_is_made(project: Path) -> None:
    """One line says what is in the way and what to do; nothing is left behind."""
    write_layout(project / "layout", "x", [directory(b"etc") + END])
    (project / "images.toml").write_text('[image.one]\nsource = "oci:layout:x"\nkernel = "none"\nsize = "64MiB"\n')
    remedy = "Is a directory: something else is in its place: remove it and start doit build again\n"
    cache = project / "cache"
    places = [cache / "guest" / Platform.host().architecture / "init", cache / "one/source.json", cache / "one/disk"]
    for path in places:
        path.unlink(missing_ok=True)  # doit's order of independent tasks changes: an earlier round may have made it
        path.mkdir(parents=True)
        status, out, errors = doit(project, "build:one")
        assert status == 1
        assert f"\n{path}: {remedy}" in out
        assert "Traceback" not in out + errors
        path.rmdir()
        assert not list(cache.glob("*/.*"))
    assert doit(project, "build:one")[0] == 0


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


RECORDS: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\xff garbage {" * 400),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a page": lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096)),
    "not JSON": lambda path: change_records(path, "update doit set task_data = '{'"),
    "no object": lambda path: change_records(path, "update doit set task_data = '[]'"),
    "another table": lambda path: change_records(path, "alter table doit rename to other"),
    "directory": replaced(Path.mkdir),
    "link": replaced(lambda path: path.symlink_to("../images.toml")),
    "broken link": replaced(lambda path: path.symlink_to("nowhere")),
    "FIFO": replaced(os.mkfifo),
}


def change_records(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


def test_each_damage_of_records_is_found(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doit(project, "init")[0] == 0
    path = project / "cache/doit.sqlite3"
    records.check(path, replace=True)
    whole = path.read_bytes()
    for name, damage in RECORDS.items():
        damage(path)
        with pytest.raises(Damaged):
            records.check(path, replace=False)
        if name == "directory":
            with pytest.raises(RootdiskError, match="Is a directory: remove it"):
                records.check(path, replace=True)
            path.rmdir()
        else:
            records.check(path, replace=True)
        assert not os.path.lexists(path), name
        records.check(path, replace=True)
        assert not os.path.lexists(path)
        path.write_bytes(whole)
    assert capsys.readouterr().err.count("it is made again") == len(RECORDS)


@pytest.mark.parametrize("damage", ["garbage", "directory"])
def test_damaged_records_of_doit_are_made_again(project: Path, damage: str) -> None:
    """With one line; who only looks is told. A directory in their place is one error."""
    assert doit(project, "init")[0] == 0
    path = project / "cache/doit.sqlite3"
    RECORDS[damage](path)
    status, _, errors = doit(project, "list")
    assert status == 1
    assert errors.startswith(f"doit: {path}")
    assert errors.count("\n") == 1
    status, out, errors = doit(project, "init")
    assert errors.startswith(str(path))
    assert "Traceback" not in errors
    if damage == "directory":
        assert status == 1
        assert errors.endswith(f"doit: {path}: Is a directory: remove it\n")
        return
    assert (status, errors.count("\n")) == (0, 1)
    assert ".  init" in out
    assert doit(project, "init")[1].startswith("-- init")


def test_other_users_cannot_write_to_what_is_made(project: Path) -> None:
    before = os.umask(0)
    try:
        assert doit(project, "list")[0] == 0
        assert doit(project, "graph")[0] == 0
    finally:
        os.umask(before)
    made = [project / "cache", *(project / "cache").rglob("*")]
    assert any(path.is_file() for path in made)
    assert not [path for path in made if path.stat().st_mode & 0o002]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_finished(project: Path, number: signal.Signals) -> None:
    """The step that was under way is done again; the ones before it are not."""
    (project / "slow.py").write_text(
        "import time\ndef sleep():\n    print('sleeping', flush=True)\n    time.sleep(60)\n"
    )
    extra = """

import slow


def task_first():
    "One that ends."
    return {"actions": ["touch first"], "targets": ["first"], "uptodate": [True]}


def task_slow():
    "One that does not."
    return {"actions": [slow.sleep], "task_dep": ["first"], "uptodate": [False]}
"""
    with (project / "dodo.py").open("a") as dodo:
        dodo.write(extra)
    running = start(project, "slow")
    assert running.stdout is not None
    lines = []
    while (line := running.stdout.readline()) and line != "sleeping\n":
        lines.append(line)
    assert ".  first\n" in lines
    running.send_signal(number)
    assert running.wait(120) == 128 + number
    assert "Traceback" not in running.communicate()[1]
    status, out, _ = doit(project, "first")
    assert (status, out) == (0, "-- first\n")


def test_handlers_of_a_program_that_imports_it_stay(project: Path) -> None:
    code = (
        "import signal\n"
        "def own(*_): pass\n"
        "signal.signal(signal.SIGTERM, own)\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import dodo\n"
        "assert signal.getsignal(signal.SIGTERM) is own and signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
        "assert dodo.IMAGES"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_lock_that_is_never_let_go_is_an_error(project: Path) -> None:
    (project / "cache").mkdir()
    code = "from imagetool.tasks import places; places.LOCK_WAIT_S = 0.2; import sys; sys.argv = ['doit', 'build']; import dodo"
    with (project / "cache" / ".lock").open("w") as lock:
        lock.write("4242 doit\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    expected = f"doit: the cache {project / 'cache'} is in use by process 4242 (doit): try again later\n"
    assert (done.returncode, done.stderr) == (1, expected)
