"""A store on a small file system that is full: programs in the guest get ENOSPC, it is said, and all goes on with room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Runner
from tests.support.disks import needs_root
from tests.support.sandboxes import LOOP, command, rows
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.root, needs_root]
SIZE = 400 << 20


class Small:
    """A store in a tmpfs, and what takes the room away from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runner = Runner(folder / "store")
        self._ballast = folder / "ballast"

    def fill(self, spare_bytes: int = 0) -> None:
        """Leave `spare_bytes` of room, at most."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                pass
            file.truncate(max(0, file.seek(0, 2) - spare_bytes))

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", folder], check=True)
    found = Small(folder)
    try:
        yield found
    finally:
        names = [name for name, row in rows(found.runner).items() if row["running"]]
        if names:
            found.runner("rm", "-f", *names)
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_the_guest_gets_enospc_and_goes_on(demo: str, small: Small) -> None:
    runner = small.runner
    assert runner.boot(demo, LOOP, "-d", "--name", "full").returncode == 0
    small.fill(8 << 20)
    write = "dd if=/dev/urandom of=/sandbox/big bs=1M count=64 conv=fsync"
    until(lambda: runner("exec", "full", "sh", "-c", "echo a > /sandbox/$$").returncode != 0)
    done = runner("exec", "full", "sh", "-c", f"{write}; echo status $?")
    assert "status 1" in done.stdout
    assert "No space left on device" in done.stderr
    assert done.stderr.count("runner: the host's disk is full") == 1
    assert str(small.folder) in done.stderr
    small.empty()
    until(lambda: runner("exec", "full", "sh", "-c", "echo a > /sandbox/$$").returncode == 0)
    done = runner("exec", "full", "sh", "-c", f"{write} && stat -c %s /sandbox/big")
    assert done.stdout == f"{64 << 20}\n", done.stderr
    assert "runner:" not in done.stderr
    assert runner("stop", "full").returncode == 0
    assert runner("start", "full").returncode == 0  # its file system is whole
    assert runner("exec", "full", "stat", "-c", "%s", "/sandbox/big").stdout == f"{64 << 20}\n"
    assert runner("rm", "-f", "full").returncode == 0


@pytest.mark.nightly
def test_a_guest_that_writes_on_stands_still_and_goes_on(demo: str, small: Small) -> None:
    """One that does not keep to what it is told: nothing that it writes is lost, and nothing becomes read-only."""
    runner = small.runner
    client = command(runner, "boot", "--name", "still", "--keep", "--entrypoint", "/bin/sh", demo, "--", "-c", LOOP)
    assert client.stdout is not None
    assert client.stdout.readline() == b"out\n"
    begin = "echo begun; sleep 3; echo 0 > /sys/fs/ext4/vda/reserved_clusters; cd /sandbox; "
    script = begin + "dd if=/dev/urandom of=other bs=1M count=48; sync other && sha256sum other"
    writing = command(runner, "exec", "-u", "0", "still", "sh", "-c", script)
    assert writing.stdout is not None
    assert writing.stdout.readline() == b"begun\n"
    small.fill()

    def stands_still() -> bool:
        probe = command(runner, "exec", "still", "true")
        try:
            return b"is paused" in probe.communicate(timeout=2)[1]
        except subprocess.TimeoutExpired:
            probe.kill()
            return b"is paused" in probe.communicate()[1]

    until(stands_still)
    assert writing.poll() is None
    small.empty()
    out, err = writing.communicate(timeout=300)
    assert writing.returncode == 0, err
    assert runner("exec", "still", "sha256sum", "/sandbox/other").stdout.split()[0].encode() == out.split()[0]
    assert runner("exec", "still", "touch", "/sandbox/new").returncode == 0
    assert runner("stop", "still").returncode == 0
    _, err = client.communicate(timeout=300)
    assert err.count(b"runner: the host's disk is full") == 1
    assert runner("rm", "still").returncode == 0


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(("stop", "-t", "1"), marks=pytest.mark.nightly),
        pytest.param(("kill",), marks=pytest.mark.nightly),
        ("rm", "-f"),
    ],
)
def test_it_ends_while_there_is_no_room(demo: str, small: Small, order: tuple[str, ...]) -> None:
    runner = small.runner
    assert runner.boot(demo, LOOP, "-d", "--name", "full").returncode == 0
    small.fill()
    assert runner(*order, "full", timeout=300).returncode == 0
    if order[0] != "rm":
        assert rows(runner, "-a")["full"]["status"] is not None
        assert runner("rm", "full").returncode == 0
    assert not (runner.store / "sandboxes/full").exists()
    assert os.listdir(runner.store / "sandboxes") == []


def test_a_quota_over_all_sandboxes(demo: str, empty_runner: Runner) -> None:
    options = ("-d", "--name", "grows", "-m", "128m", "--network", "none")
    done = empty_runner.boot(demo, LOOP, *options, ROOTDISK_STORE_QUOTA="160m")
    assert done.returncode == 0, done.stderr
    write = "dd if=/dev/urandom of=/sandbox/big bs=1M count=600 conv=fsync"
    done = empty_runner("exec", "-u", "0", "grows", "sh", "-c", write, timeout=500)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert (empty_runner.store / "sandboxes/grows/disk.qcow2").stat().st_blocks * 512 < 260 << 20
    assert "the sandboxes have used up their quota" in empty_runner("exec", "grows", "true").stderr
    done = empty_runner.boot(demo, "true", "--network", "none", ROOTDISK_STORE_QUOTA="64m")
    assert done.returncode == 125
    assert "GB of 0.1 GB: remove some, or raise ROOTDISK_STORE_QUOTA" in done.stderr


@pytest.mark.nightly
def test_a_reserve_of_the_host_stays(demo: str, small: Small) -> None:
    runner, reserve = small.runner, 100 << 20
    assert runner.boot(demo, LOOP, "-d", "--name", "grows", "-m", "128m", ROOTDISK_STORE_RESERVE="100m").returncode == 0
    write = "dd if=/dev/urandom of=/sandbox/big bs=1M count=400 conv=fsync"
    done = runner("exec", "-u", "0", "grows", "sh", "-c", write, timeout=400)
    assert "No space left on device" in done.stderr
    system = os.statvfs(small.folder)
    assert system.f_bavail * system.f_frsize >= reserve
    done = runner.boot(demo, "true", "--network", "none", ROOTDISK_STORE_RESERVE=f"{300 << 20}")
    assert done.returncode == 125
    assert "must stay free: runner prune, or lower ROOTDISK_STORE_RESERVE" in done.stderr
    until(lambda: runner("exec", "-u", "0", "grows", "rm", "-f", "/sandbox/big").returncode == 0)
    assert runner("exec", "-u", "0", "grows", "sync").returncode == 0
    until(lambda: runner("exec", "grows", "sh", "-c", "echo a > /sandbox/$$").returncode == 0)  # the space is back
