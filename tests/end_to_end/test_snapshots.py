"""Snapshots of a running sandbox, seen from outside: others go on from it, each as another machine."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from runner.api.sandbox import Sandbox
from tests.support.commands import Runner
from tests.support.processes import open_files
from tests.support.sandboxes import command, machines, rows
from tests.support.waiting import until

pytestmark = pytest.mark.vm

SECRET = "a-secret-of-this-test"
# A program that keeps a number and a text in its memory, and says both over and over.
COUNT = f"""
kept={SECRET}-$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' ')
n=0
while :; do n=$((n+1)); echo $n $kept; sleep 0.1; done
"""
# What a machine is: all of this has to differ. The last is drawn from the kernel's random numbers.
WHO = "hostname; cat /etc/machine-id /etc/hostname /sys/class/net/e*/address; head -c 16 /dev/urandom | od -An -tx1"
HOOK = "#!/bin/sh\nhead -c 16 /dev/urandom | od -An -tx1 >/root/hook\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, demo: str) -> Iterator[Runner]:
    """The command, with a sandbox that counts, and its snapshot."""
    runner = Runner(tmp_path_factory.mktemp("store"))
    try:
        done = runner.boot(demo, COUNT, "-d", "--name", "counts", "-u", "root", "-e", f"TOKEN={SECRET}")
        assert done.returncode == 0, done.stderr
        put = f"printf '{HOOK}' >/.rootdisk/resumed; chmod 755 /.rootdisk/resumed; echo saved >/root/file"
        assert runner("exec", "counts", "sh", "-c", put.replace("\n", "\\n")).returncode == 0
        until(lambda: lines(runner, "counts"))
        yield runner
    finally:
        if left := list(rows(runner, "-a")):
            runner("rm", "--force", *left)


def lines(runner: Runner, name: str) -> list[str]:
    return runner("logs", name).stdout.splitlines()


def count(line: str) -> int:
    return int(line.split()[0])


def test_go_on_as_others(running: Runner) -> None:
    """Programs keep their memory, files are the same, names and random numbers are not, and the first sandbox goes on."""
    before = lines(running, "counts")[-1]
    done = running("snapshot", "counts", "saved")
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr
    assert "secrets too" in done.stderr
    told = json.loads(running("events", "--since", "10m", "--until", "0s", "--json").stdout)
    (event,) = [row for row in told if row["event"] == "snapshot"]
    assert (event["sandbox"], event["snapshot"], event["paused_ms"] > 0) == ("counts", "saved", True)
    at = lines(running, "counts")[-1]
    for name in ("one", "two"):
        done = running("boot", "-d", "--from", "saved", "--name", name)
        assert done.returncode == 0, done.stderr
    said = [
        running("exec", name, "sh", "-c", f"{WHO}; cat /root/hook; cat /root/file").stdout for name in ("one", "two")
    ]
    for first, second in zip(*(text.splitlines()[:-1] for text in said), strict=True):
        assert first != second
        assert first
    assert [text.splitlines()[0] for text in said] == ["one", "two"]
    assert [text.splitlines()[-1] for text in said] == ["saved", "saved"]
    kept = at.split()[1]
    for name in ("one", "two"):
        first = until(partial(lines, running, name))[0]
        assert first.split()[1] == kept
        assert count(before) < count(first) < count(at) + 100
    assert running("exec", "one", "sh", "-c", "echo changed >/root/file").returncode == 0
    assert running("exec", "counts", "cat", "/root/file").stdout == "saved\n"
    until(lambda: count(lines(running, "counts")[-1]) > count(at))
    assert json.loads(running("inspect", "one").stdout)["in_use"]["start"] == "snapshot"
    # Nobody but their owner reads the files, and the machines have none of them open.
    folder = running.store / "snapshots/saved"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} == {0o600}
    for pid in machines(running, "one"):
        assert not any("snapshots" in name for name in open_files(pid).values())
    assert running("rm", "-f", "one", "two").returncode == 0


def test_the_store_knows_it(running: Runner, demo: str) -> None:
    """What a snapshot needs stays; it is listed, verified and removed by its name."""
    if not (running.store / "snapshots/saved").exists():
        assert running("snapshot", "counts", "saved").returncode == 0
    assert "saved" in running("snapshots", "-q").stdout.split()
    (disk,) = (running.store / "disks").glob("*.raw")
    assert running("prune").returncode == 0
    assert disk.exists()
    done = running("snapshot", "counts", "saved")
    assert (done.returncode, done.stdout) == (125, "")
    assert "there is already a snapshot saved" in done.stderr
    assert running("verify").returncode == 0
    assert "--memory and --from" in running("boot", "--from", "saved", "-m", "1g").stderr
    with (running.store / "snapshots/saved/ram").open("r+b") as ram:
        ram.seek(1 << 20)
        ram.write(random.randbytes(4096))
    # The damage is found when nobody has the memory yet, and by `verify`.
    done = running("boot", "--from", "saved", "--name", "damaged")
    assert (done.returncode, done.stdout) == (125, "")
    assert len(done.stderr.splitlines()) == 1
    assert "snapshot saved does not start: it is damaged: ram: its content does not match its digest" in done.stderr
    assert "damaged" not in rows(running, "-a")
    assert machines(running, "damaged") == []
    done = running("verify")
    assert done.returncode == 1
    assert "snapshot saved: ram: its content does not match its digest" in done.stderr
    assert running("rm", "--snapshot", "saved").returncode == 0
    assert not (running.store / "snapshots/saved").exists()


@pytest.mark.nightly
def test_the_disk_alone(running: Runner) -> None:
    """It boots, has the files, and nothing of the variables."""
    assert running("snapshot", "--without-memory", "counts", "disk").returncode == 0
    folder = running.store / "snapshots/disk"
    assert {path.name for path in folder.iterdir()} == {"disk.qcow2", "slot.json", "snapshot.json"}
    assert SECRET.encode() not in (folder / "disk.qcow2").read_bytes()
    done = running(
        "boot",
        "--from",
        "disk",
        "-u",
        "root",
        "-e",
        "A=b",
        "--entrypoint",
        "/bin/sh",
        "--",
        "-c",
        "cat /root/file; echo $A",
    )
    assert (done.returncode, done.stdout) == (0, "saved\nb\n"), done.stderr
    assert running("rm", "--snapshot", "disk").returncode == 0


@pytest.mark.nightly
def test_one_after_the_other(running: Runner) -> None:
    """A sandbox from a snapshot can be saved too, and it starts again by booting."""
    assert running("snapshot", "counts", "first").returncode == 0
    assert running("boot", "-d", "--from", "first", "--name", "child").returncode == 0
    assert running("snapshot", "child", "second").returncode == 0
    assert running("boot", "-d", "--from", "second", "--name", "grandchild").returncode == 0
    assert running("exec", "grandchild", "sh", "-c", "hostname; cat /root/file").stdout == "grandchild\nsaved\n"
    assert lines(running, "grandchild")[0].split()[1] == lines(running, "counts")[0].split()[1]
    assert running("restart", "-t", "1", "child").returncode == 0
    assert running("exec", "child", "sh", "-c", "hostname; cat /root/file").stdout == "child\nsaved\n"
    assert json.loads(running("inspect", "child").stdout)["in_use"]["start"] == "cold"
    running("rm", "-f", "child", "grandchild")
    assert running("rm", "--snapshot", "first", "second").returncode == 0


@pytest.mark.nightly
def test_from_a_program(running: Runner) -> None:
    with contextlib.suppress(FileNotFoundError):
        running("rm", "--snapshot", "api")
    Sandbox.get("counts", store=running.store).snapshot("api")
    with Sandbox.boot(from_snapshot="api", store=running.store) as sandbox:
        assert sandbox.exec(["cat", "/root/file"]).stdout == b"saved\n"
    assert running("rm", "--snapshot", "api").returncode == 0


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(12))
def test_killed_while_it_is_taken(running: Runner, seed: int) -> None:
    """Whenever the command is killed, the sandbox goes on, no machine stays, and the next one is taken."""
    chance = random.Random(seed)
    taking = command(running, "snapshot", "counts", "killed")
    time.sleep(chance.uniform(0.1, 4))
    taking.kill()
    taking.wait()
    before = len(lines(running, "counts"))
    until(lambda: len(lines(running, "counts")) > before, 60)
    assert len(machines(running, "counts")) == 1
    assert running("snapshots").returncode == 0
    until(lambda: not left(running))
    name = f"after{seed}"
    assert running("snapshot", "counts", name).returncode == 0
    running("rm", "--snapshot", name)
    running("rm", "--snapshot", "killed")


@pytest.mark.nightly
@pytest.mark.parametrize("what", ["keeper", "machine"])
@pytest.mark.parametrize("seed", range(3))
def test_the_sandbox_is_killed_meanwhile(running: Runner, demo: str, what: str, seed: int) -> None:
    """The command says so in one line, and leaves nothing; or the snapshot was complete."""
    name = f"{what}{seed}"
    assert running.boot(demo, COUNT, "-d", "--name", name).returncode == 0
    pid = int(rows(running)[name]["pid"]) if what == "keeper" else machines(running, name)[0]
    taking = command(running, "snapshot", name, f"{name}-saved")
    time.sleep(random.Random(seed).uniform(0.3, 1.5))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, said = taking.communicate(timeout=120)
    until(lambda: machines(running, name) == [])
    assert len(said.splitlines()) == 1
    if taking.returncode:
        assert not left(running)
        assert not (running.store / f"snapshots/{name}-saved").exists()
    else:
        assert running("rm", "--snapshot", f"{name}-saved").returncode == 0
    running("rm", "--force", name)


@pytest.mark.nightly
@pytest.mark.root
def test_a_full_disk(demo: str, tmp_path: Path) -> None:
    """One line, and the sandbox goes on."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=700", "tmpfs", tmp_path], check=True)
    runner = Runner(tmp_path)
    try:
        assert runner.boot(demo, COUNT, "-d", "--name", "full").returncode == 0
        with (tmp_path / "filler").open("wb") as filler:
            free = os.statvfs(tmp_path)
            filler.write(bytes(max(0, free.f_bavail * free.f_frsize - (60 << 20))))
        done = runner("snapshot", "full", "none")
        assert done.returncode == 125
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not left(runner)
        (tmp_path / "filler").unlink()
        before = len(lines(runner, "full"))
        until(lambda: len(lines(runner, "full")) > before, 60)
    finally:
        runner("rm", "--force", "full")
        subprocess.run(["umount", tmp_path], check=True)


def left(runner: Runner) -> list[str]:
    return [path.name for path in (runner.store / "snapshots").iterdir() if path.name.startswith(".")]
