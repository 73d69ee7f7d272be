"""A guest or a keeper that stands still: every client can be ended, and so can the sandbox."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.channel.session import PATIENCE_S
from tests.support.commands import ROOT, Runner
from tests.support.processes import is_asleep, until_it_waits
from tests.support.sandboxes import LOOP, command, machines, rows
from tests.support.terminals import read_terminal
from tests.support.waiting import until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def still(demo: str, runner: Runner) -> Iterator[str]:
    """A sandbox whose machine does not run any more, as the host's scheduler sees it."""
    assert runner.boot(demo, LOOP, "-d", "--name", "still").returncode == 0
    (machine,) = machines(runner, "still")
    os.kill(machine, signal.SIGSTOP)
    yield "still"
    assert runner("rm", "-f", "still", timeout=300).returncode == 0


def hears(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has handlers of its own; Python alone has none for these."""
    own = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    return all(has_signal(process, "SigCgt", number) for number in own)


def until_taken(process: subprocess.Popen[bytes], number: int) -> None:
    """Wait until a signal was taken, by Python's handler too, or the process has ended: two at once are one."""
    until(lambda: not has_signal(process, "ShdPnd", number))
    until(lambda: is_asleep(process.pid, 0.1))


def has_signal(process: subprocess.Popen[bytes], field: str, number: int) -> bool:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return field in status and int(status[field], 16) >> (number - 1) & 1 == 1


@pytest.mark.parametrize(
    ("times", "number"),
    [
        # One takes all the patience that a client has.
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.nightly),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.nightly),
        pytest.param(1, signal.SIGHUP, marks=pytest.mark.nightly),
        (2, signal.SIGTERM),
        (2, signal.SIGINT),
        (2, signal.SIGHUP),
    ],
)
def test_exec(still: str, runner: Runner, number: signal.Signals, times: int) -> None:
    process = command(runner, "exec", still, "true")
    until(lambda: hears(process))
    start = time.monotonic()
    for count in range(times):
        process.send_signal(number)
        if count + 1 < times:
            until_taken(process, number)
    assert process.wait(PATIENCE_S + 20) == 128 + number
    assert time.monotonic() - start < (PATIENCE_S + 20 if times == 1 else PATIENCE_S)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGQUIT])
def test_exec_and_a_quit(still: str, runner: Runner, first: signal.Signals) -> None:
    process = command(runner, "exec", still, "true")
    until(lambda: hears(process))
    process.send_signal(first)
    until_taken(process, first)
    process.send_signal(signal.SIGQUIT)
    assert process.wait(PATIENCE_S - 1) == 128 + signal.SIGQUIT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "arguments",
    [("cp", "still:/etc/hostname", "-"), ("wait", "still"), ("logs", "-f", "still"), ("stop", "-t", "600", "still")],
    ids=lambda arguments: arguments[0],
)
def test_the_others(still: str, runner: Runner, arguments: tuple[str, ...], number: signal.Signals) -> None:
    process = command(runner, *arguments)
    until_it_waits(process)
    process.send_signal(number)
    assert process.wait(20) in (128 + number, -number)


def test_output_that_nobody_reads(demo: str, runner: Runner) -> None:
    assert runner.boot(demo, "exec yes", "-d", "--name", "talks").returncode == 0
    for arguments in (("exec", "talks", "yes"), ("logs", "-f", "talks"), ("cp", "talks:/usr", "-")):
        process = command(runner, *arguments)
        until_it_waits(process)
        process.send_signal(signal.SIGINT)
        until_taken(process, signal.SIGINT)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(20)


@pytest.mark.parametrize("order", [pytest.param(("kill",), marks=pytest.mark.nightly), ("rm", "-f")])
def test_a_keeper_that_stands_still_is_killed(demo: str, runner: Runner, order: tuple[str, ...]) -> None:
    assert runner.boot(demo, LOOP, "-d", "--name", "deaf").returncode == 0
    os.kill(rows(runner)["deaf"]["pid"], signal.SIGSTOP)
    assert runner(*order, "deaf", timeout=300).returncode == 0
    until(lambda: not machines(runner, "deaf"))
    if order == ("kill",):
        assert runner("rm", "deaf").returncode == 0
    assert "deaf" not in rows(runner, "-a")


def test_a_foreground_sandbox_ends_by_a_second_signal(demo: str, runner: Runner) -> None:
    script = "trap '' TERM INT; echo up; while :; do sleep 1; done"
    process = command(runner, "boot", "--name", "deaf", "--entrypoint", "/bin/sh", demo, "--", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    until_taken(process, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(9) == 130  # before its program is killed
    until(lambda: "deaf" not in rows(runner, "-a"))


def in_a_terminal(runner: Runner, *arguments: str) -> tuple[int, int]:
    """The runner's command in a terminal of its own: its process and the terminal's other end."""
    pid, fd = pty.fork()
    if not pid:
        os.environ.update(ROOTDISK_STORE=str(runner.store), PYTHONPATH=str(ROOT))
        os.execv(sys.executable, [sys.executable, "-m", "runner", *arguments])
    return pid, fd


@pytest.mark.nightly  # half a minute: the time that a guest has to start
def test_ctrl_c_while_the_guest_does_not_start(demo: str, runner: Runner) -> None:
    """A terminal hands every key on only when there is a program to get it."""
    pid, fd = in_a_terminal(runner, "boot", "-it", "--name", "hangs", "--entrypoint", "/bin/sh", demo)
    ended: list[int] = []
    try:
        until(lambda: machines(runner, "hangs"))
        os.kill(machines(runner, "hangs")[0], signal.SIGSTOP)

        def has_ended() -> bool:
            os.write(fd, b"\x03")
            found, status = os.waitpid(pid, os.WNOHANG)
            ended.extend([os.waitstatus_to_exitcode(status)] if found else [])
            return bool(ended)

        until(has_ended, every_s=0.5)
        assert ended == [130]
        until(lambda: not machines(runner, "hangs"))
    finally:
        os.close(fd)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_what_is_typed_before_the_start_reaches_the_program(demo: str, runner: Runner) -> None:
    pid, fd = in_a_terminal(runner, "boot", "-it", "--name", "typed", "--entrypoint", "/bin/sh", demo)
    try:
        os.write(fd, b"echo a$((1+1))b; exit 7\n")
        seen = read_terminal(fd)
    finally:
        os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert b"a2b" in seen


def test_forty_commands_at_once(demo: str, runner: Runner) -> None:
    assert runner.boot(demo, LOOP, "-d", "--name", "many").returncode == 0
    script = "read -r word; exit $word"
    processes = [command(runner, "exec", "-i", "many", "sh", "-c", script, stdin=subprocess.PIPE) for _ in range(40)]
    try:
        for number, process in enumerate(processes):
            _, err = process.communicate(b"%d\n" % number, timeout=100)
            assert process.returncode == number, err
    finally:
        for process in processes:
            process.kill()


def test_a_command_that_cannot_start_ends_itself_only(demo: str, runner: Runner) -> None:
    assert runner.boot(demo, LOOP, "-d", "--name", "odd").returncode == 0
    done = runner("exec", "-u", "nobody-of-that-name", "odd", "true")
    assert (done.returncode, done.stderr) == (125, "runner: the image has no user nobody-of-that-name\n")
    done = runner("exec", "-w", "", "-e", "A=1", "-e", "A=2", "odd", "sh", "-c", "echo $A")
    assert done.stdout == "2\n"
    done = runner("exec", "odd", "echo", *(["x" * 100_000] * 3))
    assert (done.returncode, "250,000 are the most" in done.stderr) == (125, True)
    assert runner("exec", "odd", "sh", "-c", "echo ${#1}", "sh", "x" * 120_000).stdout == "120000\n"
