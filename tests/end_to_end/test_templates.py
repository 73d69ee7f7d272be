"""Sandboxes that go on from a saved machine, seen from outside: each is another, and a failure is a cold boot."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runner.store.store import Store
from runner.template import memory, saved
from tests.support.answers import answering
from tests.support.commands import Runner
from tests.support.disks import needs_root
from tests.support.processes import open_files
from tests.support.sandboxes import machines, rows
from tests.support.stores import of_store, start, templates
from tests.support.waiting import until

pytestmark = pytest.mark.vm

# What the first program of a sandbox sees: what has to differ, then what has to be right.
WHO = """
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
cat /etc/machine-id /proc/sys/kernel/random/boot_id /etc/hostname
cat /sys/class/net/e*/address
date +%s.%N
df -k --output=size / | tail -1
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
cat /proc/cmdline
"""
DIFFERENT = 5


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, demo: str) -> Iterator[Runner]:
    """The command, with a store in which a first boot has left a template."""
    os.environ["ROOTDISK_TEMPLATES"] = "1"
    runner = Runner(tmp_path_factory.mktemp("store"))
    try:
        done = runner.boot(demo, "echo first")
        assert (done.returncode, done.stdout) == (0, "first\n"), done.stderr
        until(lambda: templates(runner.store), 300)
        yield runner
    finally:
        os.environ["ROOTDISK_TEMPLATES"] = "0"
        if left := list(rows(runner)):
            runner("rm", "--force", *left)


def start_of(runner: Runner, name: str) -> str:
    return str(json.loads(runner("inspect", name).stdout)["in_use"]["start"])


@pytest.mark.nightly
def test_a_byte_flips_in_a_template(demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the kernel, so `--verify` of what a boot uses is not enough without it."""
    monkeypatch.setenv("ROOTDISK_TEMPLATES", "1")
    runner = Runner(tmp_path / "store")
    assert runner.boot(demo, "true").returncode == 0
    (folder,) = until(lambda: templates(runner.store), 300)
    seen = "grep -c rootdisk.template=1 /proc/cmdline"
    assert runner.boot(demo, seen, "--verify").stdout == "1\n"
    ram = folder / "ram"
    with ram.open("r+b") as file:
        offset, page = next(saved.pages(file.fileno()))
        file.seek(offset)
        file.write(bytes([page[0] ^ 1]))
    done = runner.boot(demo, seen, "--verify")
    assert done.stdout == "0\n", done.stderr
    assert "removed, the next boot makes it again: ram: its content does not match its digest" in done.stderr
    assert not ram.exists() or until(lambda: templates(runner.store), 300)


def test_each_is_another(warm: Runner, demo: str) -> None:
    """Random pool, machine-id, boot id, host name and MAC differ; the clock is right, and the disk is its own, also a larger one."""
    (folder,) = templates(warm.store)

    def boot(number: int) -> tuple[list[str], float]:
        """Return what a sandbox says, and when it had said it."""
        name = f"one{number}"
        size = ("--disk-size", f"{number + 9}g")
        assert warm.boot(demo, f"{WHO}\nsleep 600", "-d", "--name", name, *size).returncode == 0
        text = until(lambda: out if (out := warm("logs", name).stdout).count("\n") > DIFFERENT + 3 else "")
        return text.splitlines(), time.time()

    with ThreadPoolExecutor(2) as pool:
        (one, at), (two, _) = pool.map(boot, range(2))
    assert [start_of(warm, f"one{number}") for number in range(2)] == ["template", "template"]
    for first, second in zip(one[:DIFFERENT], two[:DIFFERENT], strict=True):
        assert first != second
        assert first
    assert abs(float(one[DIFFERENT]) - at) < 60
    assert int(two[DIFFERENT + 1]) - int(one[DIFFERENT + 1]) > 900_000  # kB
    # Not the ticks of the machine that was saved, of which it may have missed some: the template was made with the lowest priority.
    assert one[DIFFERENT + 2].startswith(("tsc", "kvm", "arch"))
    assert "rootdisk.slot" not in one[DIFFERENT + 3]
    # QEMU has the RAM sealed, and no descriptor of the template's files.
    (pid,) = machines(warm, "one0")
    files = open_files(pid).values()
    assert len({name for name in files if name.startswith("/memfd:rootdisk-")}) == 1
    assert not any("templates" in name for name in files)
    template = saved.read(folder)
    assert template is not None
    os.environ["ROOTDISK_STORE"] = str(warm.store)
    fd = memory._shared(template)  # that of a running keeper
    assert fd is not None
    with pytest.raises(PermissionError):
        os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"evil", 0)
    os.close(fd)
    # A sandbox goes on when its template is gone, and can be entered, stopped and started again.
    assert warm("exec", "one1", "sh", "-c", "echo inside").stdout == "inside\n"
    assert warm("rm", "-f", "one0", "one1").returncode == 0


def test_with_rules(warm: Runner, demo: str) -> None:
    """The machine of `--allow` has a template of its own, and reaches what it may."""
    before = set(templates(warm.store))
    with answering() as server:
        port = server.server_address[1]
        options = ("--add-host", "app.test:127.0.0.1", "--allow", f"app.test:{port}")
        ask = f's = socket.create_connection(("app.test", {port}), 20); s.sendall(b"GET /a HTTP/1.0\\r\\n\\r\\n")'
        script = f"python3 -c 'import socket; {ask}; print(s.makefile().read()[-7:])'; cat /proc/cmdline"
        said = []
        for _ in range(2):
            said.append(warm.boot(demo, script, *options))
            until(lambda: set(templates(warm.store)) - before, 300)
    assert [done.stdout.splitlines()[:1] for done in said] == [["path /a"]] * 2, said[1].stderr
    assert ["rootdisk.template=1" in done.stdout for done in said] == [False, True]
    (new,) = set(templates(warm.store)) - before
    saved.remove(new)


def test_the_clock(warm: Runner, demo: str) -> None:
    """Within 50 ms when the first program starts, as far as the host's own pauses let one see it."""
    offsets = []
    for number in range(3):
        before = time.time()
        done = warm.boot(demo, "date +%s.%N", "--name", f"clock{number}")
        after, said = time.time(), float(done.stdout)
        offsets.append(max(before - said, said - after))
    assert min(offsets) < 0.05, offsets


def test_cold_as_asked(warm: Runner, demo: str) -> None:
    done = warm.boot(demo, "cat /proc/cmdline", "--cold")
    assert "rootdisk.slot=" in done.stdout, done.stderr


def test_a_template_that_does_not_start(warm: Runner, demo: str) -> None:
    """The same command boots cold, and the template is made again."""
    (folder,) = templates(warm.store)
    nonce = json.loads((folder / "template.json").read_text())["nonce"]
    with (folder / "state").open("r+b") as file:
        file.seek(200)
        file.write(os.urandom(20_000))
    done = warm("--debug", "boot", "--entrypoint", "/bin/sh", demo, "--", "-c", "cat /proc/cmdline")
    assert done.returncode == 0, done.stderr
    assert "rootdisk.slot=" in done.stdout
    assert "booting cold" in done.stderr
    until(lambda: templates(warm.store), 300)
    assert json.loads((templates(warm.store)[0] / "template.json").read_text())["nonce"] != nonce
    assert "rootdisk.template=1" in warm.boot(demo, "cat /proc/cmdline").stdout


@pytest.mark.nightly
def test_sixteen_are_sixteen(warm: Runner, demo: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda _: warm.boot(demo, WHO).stdout.splitlines(), range(16)))
    for values in list(zip(*said, strict=True))[:DIFFERENT]:
        assert len(set(values)) == 16


@pytest.mark.nightly
def test_two_hundred_in_a_row_and_fifty_by_eight(warm: Runner, demo: str) -> None:
    for _ in range(200):
        assert warm.boot(demo, "echo out").stdout == "out\n"
    with ThreadPoolExecutor(8) as pool:
        assert {done.stdout for done in pool.map(lambda _: warm.boot(demo, "echo out"), range(50))} == {"out\n"}
    assert list(saved.failures(_store(warm))) == []


@pytest.mark.nightly
def test_makers_are_killed(warm: Runner, demo: str) -> None:
    """At any moment: nothing is left running, no half template is used, and the next boot makes it."""
    for delay_s in (0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0):
        warm("prune", "--older-than", "0")
        assert warm.boot(demo, "echo out").stdout == "out\n"
        until(lambda: _makers() or templates(warm.store), 60)
        time.sleep(delay_s)
        for maker in _makers():
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(maker, signal.SIGKILL)
        until(lambda: not _makers(), 60)
        for template in saved.all_of(_store(warm)):
            assert saved.damage(template) == ""
    warm("prune", "--older-than", "0")
    assert warm.boot(demo, "echo out").stdout == "out\n"
    until(lambda: templates(warm.store), 300)
    assert [path.name for path in (warm.store / "templates").iterdir() if path.name.startswith(".new-")] == []


def _makers() -> list[int]:
    """The processes that make a template."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"runner: makes a template"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _store(runner: Runner) -> Store:
    return Store(runner.store)


@pytest.mark.nightly
def test_restores_are_killed(warm: Runner, demo: str) -> None:
    """At any moment, whoever it hits: nothing is left running, no template is damaged, and the next boot succeeds."""
    chance = random.Random(18)
    for _ in range(25):
        until(lambda: templates(warm.store), 300)
        process = start(warm.store, "boot", "--entrypoint", "/bin/sh", demo, "--", "-c", "sleep 0.2")
        time.sleep(chance.uniform(0.1, 1.5))
        if pids := [pid for pid in of_store(warm.store) if pid not in _makers()]:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(chance.choice(pids), signal.SIGKILL)
        process.wait(120)
        until(lambda: not of_store(warm.store), 200)
        for template in saved.all_of(_store(warm)):
            assert saved.damage(template) == ""
    assert warm.boot(demo, "echo out").stdout == "out\n"
    warm("prune", "--dry-run")  # which sweeps
    assert not list((warm.store / "sandboxes").glob("[a-z]*"))


@pytest.mark.nightly
@pytest.mark.root
@needs_root
def test_no_room_for_a_template(demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot as without one, which says nothing; doctor does. One that is there is used without any room."""
    runner = Runner(tmp_path / "store")
    monkeypatch.setenv("ROOTDISK_TEMPLATES", "0")
    assert runner.boot(demo, "echo out").stdout == "out\n"
    monkeypatch.setenv("ROOTDISK_TEMPLATES", "1")
    place = runner.store / "templates"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=700", "none", place], check=True)
    try:
        done = runner.boot(demo, "echo out")
        assert (done.stdout, done.stderr) == ("out\n", "")
        (why,) = until(lambda: list(saved.failures(_store(runner))), 300)
        until(lambda: not _makers(), 60)
        assert "No space left on device" in why
        assert [path.name for path in place.iterdir() if path.is_dir()] == []
        assert "No space left on device" in runner("doctor").stdout
        subprocess.run(["mount", "-o", "remount,size=300m", place], check=True)
        assert runner.boot(demo, "echo out").stdout == "out\n"
        until(lambda: templates(runner.store), 300)
        until(lambda: not _makers(), 60)
        with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        done = runner.boot(demo, "cat /proc/cmdline")
        assert "rootdisk.template=1" in done.stdout, done.stderr
        assert done.stderr == ""
    finally:
        until(lambda: not of_store(runner.store), 60)
        subprocess.run(["umount", "--lazy", place], check=True)
