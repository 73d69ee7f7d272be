"""Sandboxes from Python programs: one with all that there is, many at once, and nothing left when a program is killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rootdisk.errors import BadInput, RootdiskError, TimedOut
from runner import AsyncSandbox, Sandbox, events, images, prune, pull, rmi, snapshots, verify
from tests.support.commands import ROOT, Runner
from tests.support.krun import FakeKrun, needs_compiler
from tests.support.waiting import until

IDLE = ["-c", "echo started; trap 'exit 3' TERM; while :; do sleep 0.1; done"]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKrun:
    """A machine's stand-in, whose program says something and ends with status 7."""
    fake = FakeKrun.build(tmp_path)
    monkeypatch.setenv("ROOTDISK_LIBKRUN", str(fake.path))
    return fake


@pytest.mark.vm
def test_a_life(demo: str, runner: Runner, tmp_path: Path) -> None:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # a fork would not be safe here
    with Sandbox.boot(
        demo,
        IDLE,
        store=runner.store,
        name="life",
        entrypoint="/bin/sh",
        keep=True,
        network="none",
        memory="128m",
        env={"A": "b"},
        label={"team": "x"},
    ) as box:
        assert box.is_running
        assert box.inspect()["labels"] == {"team": "x"}
        assert [other.name for other in Sandbox.list(store=runner.store)] == ["life"]
        result = box.exec(
            ["sh", "-c", "echo $A; id -u; cat; echo err >&2; exit 9"], input=b"in", env={"A": "c"}, user="0"
        )
        assert result == (9, b"c\n0\nin", b"err\n")
        assert result.text == "c\n0\nin"
        assert box.exec(["/no/such"]).status == 127
        box.write_file("/tmp/program.py", "print('out'); open('/tmp/result', 'w').write('42')\n")
        assert box.exec(["python3", "/tmp/program.py"], timeout=120).stdout == b"out\n"
        assert box.read_file("/tmp/result") == b"42"
        box.write_file("/tmp/big", bytes(1 << 20) + b"end", mode=0o600)
        assert box.read_file("/tmp/big") == bytes(1 << 20) + b"end"
        with pytest.raises(BadInput, match="larger than 1,000 bytes"):
            box.read_file("/tmp/big", max_bytes=1000)
        with pytest.raises(BadInput, match="/tmp is a directory"):
            box.read_file("/tmp")
        for path in ("/none/x", "/tmp", "/tmp/"):
            with pytest.raises(RootdiskError):
                box.write_file(path, b"")
        with pytest.raises(RootdiskError, match="none"):
            box.read_file("/none")
        with pytest.raises(TimedOut) as late:
            box.exec(["sh", "-c", "echo before; exec sleep 600"], timeout=3)
        assert late.value.stdout == b"before\n"
        with pytest.raises(RootdiskError, match="more than 100,000 bytes"):
            box.exec(["cat", "/dev/zero"], max_output=100_000)
        (tmp_path / "in").mkdir()
        (tmp_path / "in/file").write_text("x")
        assert box.copy_in(tmp_path / "in", "/tmp") == []
        assert box.copy_out("/tmp/in", tmp_path / "out") == []
        assert (tmp_path / "out/file").read_text() == "x"
        with box.spawn(["cat"], stdin=True) as process:
            process.write(b"ping")
            assert process.read() == ("stdout", b"ping")
            process.close_input()
            assert process.wait() == 0
        assert b"".join(piece.data for piece in box.logs()) == b"started\n"
        assert any(box.logs(console=True)) or True
        asyncio.run(_beside(runner))
        with pytest.raises(TimedOut):
            box.wait(0.1)
        with pytest.raises(BadInput, match="already a sandbox life"):
            Sandbox.boot(demo, IDLE, store=runner.store, name="life", entrypoint="/bin/sh", network="none")
        box.exec_detached(["sh", "-c", "echo done > /tmp/detached"])
        until(lambda: box.exec(["cat", "/tmp/detached"]).stdout == b"done\n", 60)
        with pytest.raises(RootdiskError, match="no/such"):
            box.exec_detached(["/no/such"])
        assert box.trim() >= 0
        used = box.stats()
        assert used["memory_limit_bytes"] == 128 << 20
        assert used["processes"] > 1
        with pytest.raises(BadInput, match="new"):
            box.rename("no/name")
        box.rename("lives")
        assert box.inspect()["last_event"]["before"] == "life"
        box.stop()
        assert box.wait() == 3
        with pytest.raises(BadInput, match="lives does not run"):
            box.stats()
        box.rename("life")
    kept = Sandbox.get("life", store=runner.store)
    assert (kept.is_running, kept.wait()) == (False, 3)
    assert kept.read_file("/tmp/result") == b"42"  # its machine runs for the copy alone
    assert not kept.is_running
    kept.remove()
    with pytest.raises(BadInput, match="no sandbox 'life'"):
        Sandbox.get("life", store=runner.store)


async def _beside(runner: Runner) -> None:
    """The same sandbox, for asyncio."""
    box = await AsyncSandbox.get("life", store=runner.store)
    first, second = await asyncio.gather(box.exec(["echo", "1"]), box.exec(["cat"], input=b"2"))
    assert (first.stdout, second.stdout) == (b"1\n", b"2")
    with pytest.raises(TimedOut):
        await box.exec(["sleep", "600"], timeout=1)
    with pytest.raises(TimedOut):
        await box.wait(0.1)
    await box.write_file("/tmp/a", "async")
    assert await box.read_file("/tmp/a") == b"async"
    assert [piece.data async for piece in box.logs()] == [b"started\n"]
    assert await box.is_running()


def test_the_store(demo: str, tmp_path: Path) -> None:
    place = tmp_path / "store"
    first = pull(demo, store=place)
    assert first.fetched
    assert pull(demo, store=place).fetched == 0
    checked = verify(store=place)
    assert checked.checked
    assert checked.damaged == ()
    first.disk.chmod(0o600)
    with first.disk.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    (image,) = images(store=place)
    assert image["digest"] == first.digest
    assert snapshots(store=place) == []
    assert list(events(since=0, until=time.time(), store=place)) == []  # no sandbox was booted
    assert [damage.repaired for damage in verify(repair=True, store=place).damaged] == [True]
    assert first.disk in [file.path for file in prune(store=place, dry_run=True)]
    assert first.disk.exists()
    prune(store=place)
    assert not first.disk.exists()
    with pytest.raises(BadInput, match="is not in the store"):
        rmi(demo, store=place)
    pull(demo, store=place)
    done = rmi(demo, store=place)
    assert done[-1] == {"done": f"removed {first.digest}"}
    assert images(store=place) == []


@needs_compiler
def test_many_lives(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    asyncio.run(_lives(demo, runner, 12))


@needs_compiler
@pytest.mark.nightly
def test_a_hundred_lives(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    started = time.monotonic()
    asyncio.run(_lives(demo, runner, 100))
    print(f"100 lives: {time.monotonic() - started:.1f} s")


async def _lives(demo: str, runner: Runner, count: int) -> None:
    async def life(number: int) -> int:
        async with await AsyncSandbox.boot(
            demo, store=runner.store, backend="krun", accel="kvm", network="none", name=f"life-{number}"
        ) as box:
            return await box.wait(300)

    pull(demo, store=runner.store)
    assert await asyncio.gather(*map(life, range(count))) == [7] * count
    assert not list((runner.store / "sandboxes").iterdir())


@needs_compiler
def test_an_end_and_a_cancelled_boot(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    stand_in.plays("sleep")
    options = {"store": runner.store, "backend": "krun", "accel": "kvm", "network": "none"}
    box = Sandbox.boot(demo, name="one", **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="sandbox one runs"):
        box.remove()
    box.kill()
    assert box.wait(60) == 137
    box.close()
    with Sandbox.boot(demo, name="two", **options):  # type: ignore[arg-type]
        pass
    assert not list((runner.store / "sandboxes").iterdir())
    detached = Sandbox.boot(demo, name="three", detach=True, **options)  # type: ignore[arg-type]
    detached.close()
    assert detached.is_running
    with pytest.raises(BadInput, match="already running"):
        detached.start()
    before = detached.inspect()["pid"]
    detached.restart(timeout=0)
    assert detached.inspect()["pid"] != before
    detached.remove(force=True)

    stand_in.plays("hang")  # so it is still under way

    async def cancelled() -> None:
        boot = asyncio.create_task(AsyncSandbox.boot(demo, name="four", **options))  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        boot.cancel()
        with pytest.raises(asyncio.CancelledError):
            await boot

    asyncio.run(cancelled())
    until(lambda: not list((runner.store / "sandboxes").iterdir()), 60)


@needs_compiler
def test_a_killed_program_leaves_nothing(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    stand_in.plays("sleep")
    program = f"""
from runner import Sandbox
import time
box = Sandbox.boot({demo!r}, store={str(runner.store)!r}, backend="krun", accel="kvm", network="none")
print("up", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert list((runner.store / "sandboxes").iterdir())
        process.kill()
    until(lambda: not list((runner.store / "sandboxes").iterdir()), 60)


@needs_compiler
def test_failures_are_exceptions(demo: str, runner: Runner, stand_in: FakeKrun) -> None:
    stand_in.fails("krun_start_enter", 22)
    with pytest.raises(RootdiskError, match="krun_start_enter: Invalid argument"):
        Sandbox.boot(demo, store=runner.store, backend="krun", accel="kvm", network="none")
    with pytest.raises(BadInput, match="is not in the store"):
        Sandbox.boot("registry.invalid/x:1", store=runner.store, pull="never")
    assert not list((runner.store / "sandboxes").iterdir())


@pytest.mark.vm
@pytest.mark.nightly
def test_ten_real_ones(demo: str, runner: Runner) -> None:
    async def life(number: int) -> bytes:
        options = {"network": "none", "memory": "96m", "entrypoint": "/bin/sh"}
        async with await AsyncSandbox.boot(demo, IDLE, store=runner.store, **options) as box:  # type: ignore[arg-type]
            await box.write_file("/tmp/number", str(number))
            return (await box.exec(["cat", "/tmp/number"])).stdout

    async def lives() -> list[bytes]:
        return await asyncio.gather(*map(life, range(10)))

    assert asyncio.run(lives()) == [b"%d" % number for number in range(10)]
    assert not list((runner.store / "sandboxes").iterdir())


@needs_compiler
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-"])
def test_a_program_without_standard_streams(
    demo: str, runner: Runner, stand_in: FakeKrun, tmp_path: Path, closed: str
) -> None:
    """The sandbox's lock or a socket got the number of such a stream, and its keeper lost it."""
    options = {"network": "none", "backend": "krun", "accel": "kvm", "store": str(runner.store)}
    program = (
        "import os, runner\n"
        f"text = runner.Sandbox.boot({demo!r}, **{options}).wait(60)\n"
        f"print(text, file=open({str(tmp_path / 'out')!r}, 'w'))"
    )
    (tmp_path / "program.py").write_text(program)
    shell = f"exec {sys.executable} {tmp_path / 'program.py'} {closed}"
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "7\n"
