"""What people do who know docker, with a real machine."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.commands import Runner
from tests.support.sandboxes import command
from tests.support.waiting import until

pytestmark = pytest.mark.vm


def inspected(runner: Runner) -> dict[str, object]:
    """What `inspect` says, but for the last event: cp starts the machine, and says so."""
    row: dict[str, object] = json.loads(runner("inspect", "habits").stdout)
    return {key: value for key, value in row.items() if key != "last_event"}


def test_a_life(demo: str, runner: Runner, tmp_path: Path) -> None:
    """One sandbox: seen, stopped, copied from and to while it is stopped, renamed, restarted, removed."""
    script = "echo one; echo two >&2; echo three; test -e /sandbox/in && cat /sandbox/in; echo out > /sandbox/out; exec sleep 600"
    words = ("-d", "--name", "habits", "-l", "for=test", "--entrypoint", "sh", demo, "-c", script)
    assert runner("run", *words).stdout == "habits\n"
    assert runner("ps", "-q", "--filter", "label=for=test").stdout == "habits\n"
    assert runner("ps", "--format", "{{.Names}} {{.Status}}", "-f", "name=habits").stdout == "habits running\n"
    used = json.loads(runner("inspect", "habits").stdout)["in_use"]
    assert used["accelerator"] in ("kvm", "tcg")
    assert used["clone"] == "overlay"
    until(lambda: "three" in runner("logs", "habits").stdout)
    done = runner("logs", "--tail", "2", "-t", "habits")
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) == 2
    assert all(re.match(r"[0-9-]{10}T[0-9:.]{12}Z (two|three)$", line) for line in lines)
    assert runner("logs", "--since", "1h", "habits").stdout == "one\nthree\n"
    renamed_while_it_runs(runner)
    assert runner("exec", "-d", "habits", "sh", "-c", "echo dropped; echo made > /sandbox/later").stdout == ""
    until(lambda: runner("exec", "habits", "cat", "/sandbox/later").stdout == "made\n")
    done = runner("exec", "-d", "habits", "/nosuch")
    assert (done.returncode, "No such file" in done.stderr) == (127, True)
    until(lambda: runner("exec", "habits", "cat", "/sandbox/out").stdout == "out\n")
    assert runner("stop", "-t", "1", "habits").stdout == "habits\n"
    before = inspected(runner)
    copied = runner("cp", "habits:/sandbox/out", str(tmp_path))
    assert (copied.returncode, copied.stderr) == (0, "")
    assert (tmp_path / "out").read_text() == "out\n"
    (tmp_path / "in").write_text("put in\n")
    assert runner("cp", str(tmp_path / "in"), "habits:/sandbox").returncode == 0
    assert inspected(runner) == before
    assert runner("cp", str(tmp_path / "missing"), "habits:/").returncode == 125
    assert runner("rename", "habits", "other").stdout == "other\n"
    assert "no sandbox 'habits'" in runner("inspect", "habits").stderr
    assert runner("restart", "-t", "1", "other").stdout == "other\n"
    until(lambda: "put in" in runner("logs", "--tail", "1", "other").stdout)
    assert "needs" in runner("rmi", demo).stderr
    assert runner("rm", "-f", "other").returncode == 0


def renamed_while_it_runs(runner: Runner) -> None:
    """To another name and back: whoever follows its log goes on, its files and events have the new name, two are not one."""
    with command(runner, "logs", "-f", "habits") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"one\n"  # it has opened the log
        assert runner("rename", "habits", "moved").stdout == "moved\n"
        assert "no sandbox 'habits'" in runner("exec", "habits", "true").stderr
        assert runner("exec", "moved", "sh", "-c", "echo $0", "a").stdout == "a\n"
        assert runner("rename", "moved", "moved").stdout == "moved\n"
        (runner.store / "sandboxes/taken/x").mkdir(parents=True)
        assert "already a sandbox taken" in runner("rename", "moved", "taken").stderr
        assert json.loads(runner("inspect", "moved").stdout)["running"] is True
        assert runner("rename", "moved", "habits").stdout == "habits\n"
        assert follower.poll() is None
        follower.terminate()
    shutil.rmtree(runner.store / "sandboxes/taken")
    events = [json.loads(line) for line in (runner.store / "events").read_text().splitlines()]
    renamed = [
        (row["before"], row["sandbox"])
        for row in events
        if row["event"] == "renamed" and "habits" in (row["before"], row["sandbox"])
    ]
    assert renamed == [("habits", "moved"), ("moved", "habits")]
    assert [row["sandbox"] for row in events if row["event"] == "exec"][-1] == "moved"


@pytest.mark.parametrize(
    ("program", "status", "why"), [("/nosuch", 127, "No such file"), ("/etc/passwd", 126, "Permission")]
)
def test_a_detached_program_that_cannot_start(demo: str, runner: Runner, program: str, status: int, why: str) -> None:
    done = runner("run", "-d", "--rm", "--name", "cannot", "--entrypoint", program, demo)
    assert (done.returncode, done.stdout) == (status, "cannot\n")
    assert f"cannot run {program}: {why}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_time_out_says_so(demo: str, runner: Runner) -> None:
    done = runner("run", "--timeout", "5", "--entrypoint", "sleep", demo, "100")
    assert (done.returncode, done.stderr) == (124, "runner: --timeout: stopped after 5 s\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="the virtiofsd of QEMU 7 runs as root only")
def test_a_file_as_a_volume(demo: str, runner: Runner, tmp_path: Path) -> None:
    """A file of the image is replaced, one that is missing is made; nothing beside it is seen, and :ro holds.

    If something covers /etc, what the sandbox puts there is seen nevertheless, but a file of the user counts.
    """
    (tmp_path / "file").write_text("of the host\n")
    (tmp_path / "beside").write_text("secret\n")
    script = "cat /bin/true /opt/new/ro; echo more >> /bin/true; echo no >> /opt/new/ro; ls /run/rootdisk/volumes/*;"
    script += "ls /etc; cat /etc/hosts /etc/hostname"
    volumes: tuple[str, ...] = (
        "-v",
        f"{tmp_path}/file:/bin/true",
        "-v",
        f"{tmp_path}/file:/opt/new/ro:ro",
        "--tmpfs",
        "/etc",
    )
    volumes += ("-v", f"{tmp_path}/hosts:/etc/hosts")
    (tmp_path / "hosts").write_text("of the user\n")
    done = runner("run", "-u", "0", "--name", "covered", *volumes, "--entrypoint", "sh", demo, "-c", script)
    assert done.stdout.startswith("of the host\nof the host\n")
    assert done.stdout.endswith("hostname\nhosts\nmachine-id\nresolv.conf\nof the user\ncovered\n")
    assert "Read-only file system" in done.stderr
    assert "beside" not in done.stdout
    assert (tmp_path / "file").read_text() == "of the host\nmore\n"
