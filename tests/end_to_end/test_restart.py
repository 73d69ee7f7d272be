"""Sandboxes that start again, in place of the machine libkrun's stand-in, whose program ends with status 7."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Runner
from tests.support.krun import FakeKrun, needs_compiler
from tests.support.sandboxes import command, rows
from tests.support.waiting import until

pytestmark = needs_compiler


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKrun:
    fake = FakeKrun.build(tmp_path)
    monkeypatch.setenv("ROOTDISK_LIBKRUN", str(fake.path))
    return fake


def boot(runner: Runner, demo: str, name: str, policy: str) -> None:
    options = ("--backend", "krun", "--accel", "kvm", "--network", "none", "--restart", policy)
    done = runner("boot", "-d", "--name", name, *options, demo)
    assert done.returncode == 0, done.stderr


def starts(runner: Runner, name: str) -> int:
    # The store is that of the session: another test may have had a sandbox with this name.
    since = str(row(runner, name)["created"])
    done = runner("events", "--json", "--until", "0s", "--since", since, "--filter", f"sandbox={name}")
    return [event["event"] for event in json.loads(done.stdout)].count("started")


def row(runner: Runner, name: str) -> dict[str, Any]:
    return rows(runner, "-a")[name]


@pytest.mark.nightly  # waits, and many starts
def test_restarts(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    boot(runner, demo, "twice", "on-failure:2")
    until(lambda: not row(runner, "twice")["running"], 60)
    assert (row(runner, "twice")["state"], row(runner, "twice")["status"]) == ("exited", 7)
    assert starts(runner, "twice") == 3

    boot(runner, demo, "on", "unless-stopped")
    held = len(os.listdir(f"/proc/{row(runner, 'on')['pid']}/fd"))
    until(lambda: starts(runner, "on") > 5, 60)  # so the next wait is three seconds
    assert len(os.listdir(f"/proc/{row(runner, 'on')['pid']}/fd")) <= held + 2
    until(lambda: row(runner, "on")["state"] == "restarting", 60)
    assert "about to start again" in runner("exec", "on", "true").stderr
    began = starts(runner, "on")
    assert runner("wait", "on").stdout == "7\n"  # of the next run, as docker
    assert starts(runner, "on") == began + 1
    until(lambda: row(runner, "on")["state"] == "restarting", 60)
    assert runner("stop", "on").returncode == 0
    assert row(runner, "on")["state"] == "exited"
    assert runner("start", "--all", "--json").stdout == "[]\n"  # its user has stopped it

    stand_in.plays("sleep")
    assert runner("start", "on").returncode == 0
    assert row(runner, "on")["state"] == "running"
    keeper = row(runner, "on")["pid"]
    os.kill(keeper, signal.SIGKILL)  # as a host that loses its power
    until(lambda: not row(runner, "on")["running"], 60)
    assert json.loads(runner("start", "--all", "--json").stdout) == [{"name": "on"}]
    assert runner("stop", "--all").stdout == "on\n"
    assert not row(runner, "on")["running"]
    assert runner("start", "--all").stdout == "on\n"
    assert runner("rm", "-f", "on", "twice").returncode == 0


def test_ends_while_it_waits(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    """Its keeper is killed, as by a host that loses its power; it is renamed, and removed."""
    boot(runner, demo, "waits", "on-failure")
    until(lambda: starts(runner, "waits") > 4 and row(runner, "waits")["state"] == "restarting")
    os.kill(row(runner, "waits")["pid"], signal.SIGKILL)
    until(lambda: not row(runner, "waits")["running"], 60)
    assert json.loads(runner("start", "--all", "--json").stdout) == [{"name": "waits"}]
    # Seconds are left until it starts again, more than a command takes.
    until(lambda: starts(runner, "waits") > 10 and row(runner, "waits")["state"] == "restarting")
    assert "about to start again" in runner("rename", "waits", "other").stderr
    assert runner("rm", "-f", "waits").returncode == 0
    assert "waits" not in rows(runner, "-a")


def test_one_that_hangs_does_not_stop_the_others(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    stand_in.plays("sleep")
    names = ["first", "second"]
    for name in names:
        boot(runner, demo, name, "always")
        os.kill(row(runner, name)["pid"], signal.SIGKILL)
    until(lambda: not any(row(runner, name)["running"] for name in names), 60)
    stand_in.plays("hang")
    starting = command(runner, "start", "--all")
    until(lambda: starting.poll() is not None or all(starts(runner, name) == 2 for name in names), 60)
    assert starting.poll() is None, starting.communicate()
    assert runner("kill", *names).returncode == 0
    out, err = starting.communicate(timeout=60)
    assert (starting.returncode, out) == (125, b""), err
    assert runner("rm", *names).returncode == 0


@pytest.mark.nightly  # many starts
def test_a_stop_is_not_lost(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    """Whenever it comes: while the program ends, while it starts, between the two."""
    for number in range(12):
        boot(runner, demo, "flaps", "always")
        until(lambda: starts(runner, "flaps") > 1, 60)
        for _ in range(number):
            row(runner, "flaps")
        assert runner("stop", "flaps", timeout=30).returncode == 0
        assert row(runner, "flaps")["state"] == "exited"
        assert runner("rm", "flaps").returncode == 0


@pytest.mark.parametrize(
    "options", [("--restart", "always"), ("-d", "--rm", "--restart", "always"), ("-d", "--restart", "often")]
)
def test_options_that_do_not_fit(demo: str, runner: Runner, options: tuple[str, ...]) -> None:
    done = runner("boot", *options, demo)
    assert done.returncode == 125
    assert "--restart" in done.stderr
