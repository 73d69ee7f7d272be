"""Events: of a boot on a descriptor, of all sandboxes by the command, and the last one in `inspect`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runner.store import events
from runner.store.events import Events
from tests.support.commands import ROOT, Runner
from tests.support.krun import FakeKrun, needs_compiler

SECRET = "not-for-others"
OPTIONS = ("--backend", "krun", "--accel", "kvm", "--network", "none")


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@needs_compiler
def test_the_events_of_a_boot(demo: str, empty_runner: Runner, tmp_path: Path) -> None:
    runner = empty_runner
    fake = FakeKrun.build(tmp_path)
    command = [
        sys.executable,
        "-m",
        "runner",
        "boot",
        *OPTIONS,
        "--name",
        "one",
        "--events",
        "9",
        "-e",
        f"TOKEN={SECRET}",
        demo,
        SECRET,
    ]
    environment = {**os.environ, "ROOTDISK_STORE": str(runner.store), "ROOTDISK_LIBKRUN": str(fake.path)}
    for kind in ("fetched", "hit"):
        with (tmp_path / kind).open("wb") as file:
            done = subprocess.run(
                ["bash", "-c", 'exec 9>&"$0"; exec "$@"', str(file.fileno()), *command],
                pass_fds=[file.fileno()],
                cwd=ROOT,
                env=environment,
                capture_output=True,
            )
        assert done.returncode == 7, done.stderr
        told = rows((tmp_path / kind).read_text())
        assert [row["event"] for row in told] == ["resolved", kind, "started", "ready", "ended"]
        assert {row["sandbox"] for row in told} == {"one"}
        assert told[0]["artifact"] == demo
        assert told[-1]["status"] == 7
        assert [row["time"] for row in told] == sorted(row["time"] for row in told)
    assert rows((tmp_path / "fetched").read_text())[1]["bytes"] > 1_000_000

    assert SECRET not in (tmp_path / "hit").read_text() + (runner.store / "events").read_text()
    seen = rows(runner("events", "--since", "10m", "--until", "0s", "--format", "json").stdout)
    assert [row["event"] for row in seen[5:]] == ["resolved", "hit", "started", "ready", "ended"]
    array = json.loads(runner("events", "--since", "10m", "--until", "0s", "--json", "-f", "event=ended").stdout)
    assert [row["status"] for row in array] == [7, 7]
    lines = runner("events", "--since", "10m", "--until", "0s", "-f", "sandbox=one").stdout.splitlines()
    assert lines[-1].endswith(" one ended status=7 error=")
    assert runner("events", "--since", "10m", "--until", "0s", "-f", "sandbox=two").stdout == ""
    assert "write KEY=VALUE" in runner("events", "-f", "colour=red").stderr
    for number in ("77", "2", "2147483648"):
        refused = runner("boot", *OPTIONS, "--events", number, demo, ROOTDISK_LIBKRUN=str(fake.path))
        assert f"--events {number}: no open file to write to" in refused.stderr

    fake.plays("sleep")
    booted = runner("boot", *OPTIONS, "-d", "--name", "two", demo, ROOTDISK_LIBKRUN=str(fake.path))
    assert booted.returncode == 0, booted.stderr
    assert json.loads(runner("inspect", "two").stdout)["last_event"]["event"] == "ready"
    (row,) = json.loads(runner("stats", "--json").stdout)
    assert row["name"] == "two"
    assert row["memory_bytes"] > 0
    assert row["received_bytes"] is None
    runner("kill", "two")
    assert json.loads(runner("inspect", "two").stdout)["last_event"]["status"] == 137


def test_events_are_followed(empty_runner: Runner) -> None:
    runner = empty_runner
    runner("ps")
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "events", "--since", "1m", "--format", "{{.Sandbox}} {{.Event}}"],
        cwd=ROOT,
        env={**os.environ, "ROOTDISK_STORE": str(runner.store)},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        for number in range(3):
            Events(runner.store, f"box-{number}").tell("ready")
            assert process.stdout.readline() == b"box-%d ready\n" % number
    finally:
        process.terminate()
        process.wait()


def test_many_writers_and_a_full_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is whole, whoever writes; old files are replaced; nothing is raised."""
    monkeypatch.setattr(events, "FILE_MAX_BYTES", 200_000)

    def write(number: int) -> None:
        for count in range(200):
            Events(tmp_path, f"box-{number}").tell("exec", session=count)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(events.kept(tmp_path))) == 800
    for _ in range(4000):
        Events(tmp_path, "box").tell("exec", session=1, error="é" * 10_000)
    assert (tmp_path / "events").stat().st_size + (tmp_path / "events.old").stat().st_size < 2 * 200_000 + 4096
    last = events.last_of(tmp_path, "box", 0)
    assert last is not None
    assert last["event"] == "exec"
    assert events.last_of(tmp_path, "box", 1e12) is None
    with (tmp_path / "events").open("ab") as file:
        file.write(b'{"time": 1\n[[[[\n\xff\n{"time": "x", "event": 1}\n')
    assert events.last_of(tmp_path, "box", 0) == last
    Events(tmp_path / "none", "box").tell("ready")


def test_nobody_reads(tmp_path: Path) -> None:
    """A pipe that is full, or closed, does not stop the keeper."""
    reader, writer = os.pipe()
    told = Events(tmp_path, "box", writer)
    for _ in range(5000):
        told.tell("exec", session=1)
    os.close(reader)
    told.tell("ended", status=0)
    os.close(writer)
