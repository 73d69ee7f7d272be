"""A sandbox whose keeper was killed, while its machine still ends."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rootdisk.errors import Busy
from runner.machine import cgroup
from runner.sandbox import directory, liveness, lookup
from runner.sandbox.state import Spec, State, state_json

# As QEMU: it locks bytes of the disk, for itself.
MACHINE = """
import fcntl, struct, sys
disk = open(sys.argv[1], "r+b")
fcntl.fcntl(disk, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0))
print(flush=True)
sys.stdin.read()
"""
SPEC = Spec("web", "oci:x", "sha256:" + "0" * 64, "0" * 64, "0" * 64, None, None, 1, 64, 1, keep=True)


@pytest.fixture
def cut_off(tmp_path: Path) -> State:
    """The sandbox, in a directory with its name."""
    folder = tmp_path / "web"
    folder.mkdir()
    for name in ("lock", "disk.qcow2"):
        (folder / name).touch(0o600)
    state = state_json({}, SPEC, pid=7, created=1.0, started=1.0, in_use={"cgroup": str(tmp_path / "rootdisk-0")})
    (folder / "state.json").write_text(json.dumps(state))
    return lookup.read(folder)


@pytest.fixture
def machine(cut_off: State) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", MACHINE, str(cut_off.folder / "disk.qcow2")]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def rename(state: State) -> None:
    directory.Sandbox.rename(state, "other")


def start(state: State) -> None:
    directory.Sandbox.open(state).release()


def sweep(state: State) -> None:
    directory.discard(state.folder)


@pytest.mark.parametrize("act", [start, rename, directory.remove, sweep])
def test_its_machine_is_waited_for(
    cut_off: State, machine: subprocess.Popen[bytes], act: Callable[[State], None]
) -> None:
    assert cut_off.is_cut_off
    acting = threading.Thread(target=act, args=[cut_off])
    acting.start()
    acting.join(0.3)
    assert acting.is_alive()
    assert cut_off.folder.exists()
    machine.communicate()
    acting.join()


def test_a_machine_that_does_not_end(
    cut_off: State, machine: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "_MACHINE_S", 0.0)
    with pytest.raises(Busy, match="has not ended"):
        directory.Sandbox.open(cut_off)
    assert not liveness.is_running(cut_off)  # the lock is free again
    machine.communicate()
    start(cut_off)


def test_its_cgroup_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    for name in ("rootdisk-0", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "busy").mkdir()
    ending = threading.Timer(0.2, (tmp_path / "rootdisk-0/busy").rmdir)
    ending.start()
    for name in ("rootdisk-0", "other"):
        cgroup.end_left(str(tmp_path / name))
    ending.join()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["other"]


def test_flock_is_not_a_machine(cut_off: State) -> None:
    fd = os.open(cut_off.folder / "disk.qcow2", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert liveness.await_machine(cut_off.folder)
    os.close(fd)
