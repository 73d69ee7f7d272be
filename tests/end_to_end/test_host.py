"""What a caller leaves a sandbox: closed descriptors, locks and pipes of its own, ignored signals, a directory to unmount."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner, without_progress
from tests.support.processes import CLOSED, open_files
from tests.support.sandboxes import LOOP, command, machines, rows
from tests.support.waiting import until

pytestmark = pytest.mark.vm
OFTEN = [pytest.param(one, marks=[] if one in (">&-", CLOSED[-1]) else pytest.mark.nightly) for one in CLOSED]


def shell(runner: Runner, script: str, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A shell script in which `runner` and `imagetool` are ours, run to its end."""
    tools = "\n".join(f'{tool}() {{ "{sys.executable}" -m {tool} "$@"; }}' for tool in ("runner", "imagetool"))
    done = subprocess.run(
        ["bash", "-c", f"{tools}\n{script}", "script", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ROOTDISK_STORE": str(runner.store)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    done.stderr = without_progress(done.stderr)
    return done


@pytest.fixture(scope="module")
def sandbox(demo: str, runner: Runner) -> Iterator[str]:
    """One in the background, begun by a caller with all of its descriptors closed."""
    boot = f'runner boot -d --name host --entrypoint /bin/sh {demo} -- -c "$1"'
    assert shell(runner, f"{boot} <&- >&- 2>&-", LOOP).returncode == 0
    yield "host"
    runner("rm", "--force", "host")


def test_its_lock_holds(sandbox: str, runner: Runner) -> None:
    assert rows(runner)[sandbox]["running"]
    assert "sandbox host runs" in runner("rm", sandbox).stderr
    assert len(machines(runner, sandbox)) == 1


def test_its_keeper_has_its_own_files_only(sandbox: str, runner: Runner) -> None:
    keeper = Path(f"/proc/{rows(runner)[sandbox]['pid']}")
    opened = open_files(keeper.name)
    assert [opened[fd] for fd in (0, 1)] == ["/dev/null"] * 2
    assert opened[2] == str(runner.store / "sandboxes/host/keeper.log")
    (machine,) = machines(runner, sandbox)
    own = ("/dev/null", os.readlink(f"/proc/{machine}/fd/1"))  # what the machine says
    for name in opened.values():
        assert name in own or name.startswith((str(runner.store), "socket:", "anon_inode:")), opened
    assert os.readlink(keeper / "cwd") == "/"


@pytest.mark.parametrize("closed", OFTEN)
def test_commands_with_closed_descriptors(sandbox: str, runner: Runner, demo: str, tmp_path: Path, closed: str) -> None:
    """Each does its work, and its own descriptors are never where its output goes."""
    (tmp_path / "file").write_text("in\n")
    script = f"""
        check() {{ "$@" {closed}; echo $? >> status; }}
        cd "$1"
        check runner ps -a
        check runner inspect {sandbox}
        check runner inspect {demo}
        check runner pull {demo}
        check runner exec {sandbox} sh -c 'cat; echo out; echo err >&2; exit 5'
        check runner exec -i {sandbox} sh -c 'cat; exit 5'
        check runner cp file {sandbox}:/tmp/file
        check runner cp {sandbox}:/tmp/file back
        check runner cp {sandbox}:/tmp/file -
        check runner logs {sandbox}
        check runner prune --dry-run
        check runner ps --wrong
        check imagetool ls {demo} /etc
        check imagetool cat {demo} /etc/os-release
        check imagetool schema
    """
    done = shell(runner, script, str(tmp_path))
    assert (tmp_path / "status").read_text().split() == [
        "0",
        "0",
        "0",
        "0",
        "5",
        "5",
        "0",
        "0",
        "0",
        "0",
        "0",
        "125",
        "0",
        "0",
        "0",
    ], done.stderr
    assert (tmp_path / "back").read_text() == "in\n"
    assert "Traceback" not in done.stderr
    assert rows(runner)[sandbox]["running"]


@pytest.mark.parametrize("closed", OFTEN)
def test_a_boot_with_closed_descriptors(runner: Runner, demo: str, closed: str) -> None:
    done = shell(runner, f"runner boot --entrypoint /bin/sh {demo} -- -c 'echo out; exit 9' {closed}; echo $?")
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "out\n") + "9\n"
    assert done.stderr == ""
    assert [row for row in rows(runner, "-a") if row != "host"] == []


def test_a_caller_gets_back_what_is_its_own(demo: str, runner: Runner, tmp_path: Path) -> None:
    """A lock, a pipe and a directory: all are free when `boot --detach` has returned, though the sandbox goes on."""
    lock, away = tmp_path / "lock", tmp_path / "away"
    away.mkdir()
    script = f"""
        exec 9>"$1"; flock 9; cd "$2"
        seen=$(runner boot -d --name caller --entrypoint sleep {demo} -- 1000 3>&1 2>&1)
        echo "$seen"
    """
    done = shell(runner, script, str(lock), str(away))
    assert (done.stdout, done.stderr) == ("caller\n", "")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (machine,) = machines(runner, "caller")
    for pid in (machine, rows(runner)["caller"]["pid"]):
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_ignored_signals_stay_ignored(demo: str, runner: Runner) -> None:
    """By `nohup`, or of a script's `&`: what the terminal sends ends neither the client nor the sandbox."""
    script = f"""
        trap '' HUP INT
        exec "{sys.executable}" -m runner boot --name deaf --entrypoint /bin/sh {demo} -- -c '
            trap "echo bye; exit 3" TERM; echo up; while :; do sleep 0.1; done'
    """
    client = subprocess.Popen(
        ["bash", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ROOTDISK_STORE": str(runner.store)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "up\n"
    keeper = rows(runner)["deaf"]["pid"]
    for pid in (client.pid, keeper):
        for number in (signal.SIGHUP, signal.SIGINT):
            os.kill(pid, number)
    assert runner("exec", "deaf", "echo", "still there").stdout == "still there\n"
    (machine,) = machines(runner, "deaf")
    ignored = next(
        line for line in Path(f"/proc/{machine}/status").read_text().splitlines() if line.startswith("SigIgn")
    )
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGHUP - 1) | 1 << (signal.SIGINT - 1)) == 0
    os.kill(client.pid, signal.SIGTERM)
    assert client.communicate(timeout=300)[0] == "bye\n"
    assert client.returncode == 3
    until(lambda: "deaf" not in rows(runner, "-a"))


def test_output_that_does_not_block(sandbox: str, runner: Runner) -> None:
    """A program's output through a pipe that another program has made non-blocking, and is slow to read."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    client = subprocess.Popen(
        [sys.executable, "-m", "runner", "exec", sandbox, "sh", "-c", "seq 400000; seq 100000 >&2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ROOTDISK_STORE": str(runner.store)},
        stdout=writer,
        stderr=writer,
    )
    os.close(writer)
    with open(reader, "rb") as file:
        lines = file.read().split()
    assert client.wait(300) == 0
    assert len(lines) == 500_000


TRAPS = """
for name in HUP INT QUIT USR1 USR2 WINCH; do trap "echo $name" $name; done
trap 'echo TERM; exit 7' TERM
echo up; while :; do sleep 0.1; done
"""


@pytest.mark.parametrize("how", ["boot", "exec"])
def test_signals_reach_the_program(demo: str, runner: Runner, sandbox: str, how: str) -> None:
    """Each as it is, while the program answers; SIGTERM as the image's stop signal, and its exit status comes back."""
    words = {
        "boot": ["boot", "--name", "heard", "--entrypoint", "/bin/sh", demo, "--", "-c", TRAPS],
        "exec": ["exec", sandbox, "sh", "-c", TRAPS],
    }[how]
    client = command(runner, *words)
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    for name in ("USR1", "HUP", "INT", "USR1", "QUIT", "USR2", "WINCH", "TERM"):
        client.send_signal(getattr(signal, f"SIG{name}"))
        assert client.stdout.readline() == f"{name}\n".encode()
    assert client.wait(300) == 7


def test_a_reload_is_no_end(demo: str, runner: Runner) -> None:
    """A main program that says nothing to SIGHUP goes on, however often it comes."""
    script = "trap 'touch /tmp/reloaded' HUP; trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done"
    client = command(runner, "boot", "--name", "reload", "--entrypoint", "/bin/sh", demo, "--", "-c", script)
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    for _ in range(3):
        client.send_signal(signal.SIGHUP)
        until(lambda: runner("exec", "-u", "0", "reload", "rm", "/tmp/reloaded").returncode == 0)
    client.send_signal(signal.SIGTERM)
    assert client.wait(300) == 3


@pytest.mark.nightly
def test_a_program_that_hears_nothing(demo: str, runner: Runner) -> None:
    """Without a trap each signal does what it does by default, as in any shell."""
    for name in ("INT", "HUP", "USR1", "QUIT"):
        client = command(runner, "boot", "--entrypoint", "/bin/sh", demo, "--", "-c", "echo up; exec sleep 1000")
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        client.send_signal(getattr(signal, f"SIG{name}"))
        assert client.wait(300) == 128 + getattr(signal, f"SIG{name}")
