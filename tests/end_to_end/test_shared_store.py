"""Several runners with one store: boots of one name at once, and a repair beside a sandbox that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT, Runner, without_progress

pytestmark = pytest.mark.vm


def test_ten_boots_at_once_of_one_name(demo: str, empty_runner: Runner) -> None:
    """One has the name, and all the others end with one line, though none of them has the disk at first."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "runner", "boot", "-d", "--name", "one", demo, "--", "sleep", "600"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "ROOTDISK_STORE": str(empty_runner.store)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]  # fmt: skip
    statuses = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        statuses.append(process.returncode)
        if process.returncode:
            lines = without_progress(errors).splitlines()
            told = [line for line in lines if not line.startswith("waiting for process")]
            assert len(told) == 1, errors
            assert "there is already a sandbox one" in told[0]
        else:
            assert output == "one\n"
    assert sorted(statuses) == [0] + [125] * 9
    assert empty_runner("rm", "-f", "one").returncode == 0


def test_a_repair_beside_a_sandbox_that_runs(demo: str, empty_runner: Runner) -> None:
    assert empty_runner.boot(demo, "sleep 600", "-d", "--name", "runs").returncode == 0
    (disk,) = (empty_runner.store / "disks").glob("*.raw")
    good = empty_runner.digests()
    disk.chmod(0o600)
    with disk.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    assert empty_runner("verify").returncode == 1
    assert "is damaged in the store" in empty_runner("boot", demo).stderr
    done = empty_runner("verify", "--repair", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "run with the damaged one until they are started again: runs" in done.stderr
    assert empty_runner.digests() == good
    assert empty_runner("exec", "runs", "true").returncode == 0
    (row,) = json.loads(empty_runner("ps", "--json").stdout)
    assert row["state"] == "running"
    (empty_runner.store / "sandboxes" / "runs" / "lock").unlink()
    (row,) = json.loads(empty_runner("ps", "--json").stdout)
    assert (row["state"], row["running"]) == ("running", True)
    (empty_runner.store / "sandboxes" / "runs" / "state.json").write_text("{")
    (row,) = json.loads(empty_runner("ps", "--json").stdout)
    assert (row["state"], row["running"]) == ("unreadable", True)
    assert "sandbox runs runs: runner rm --force runs" in empty_runner("rm", "runs").stderr
    assert empty_runner("rm", "-f", "runs").returncode == 0
    assert json.loads(empty_runner("ps", "-a", "--json").stdout) == []
