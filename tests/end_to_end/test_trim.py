"""What files in a sandbox no longer use is given back to the host on request."""

from __future__ import annotations

import json

import pytest

from tests.support.commands import Runner
from tests.support.sandboxes import LOOP

SCRIPT = """
mount -o remount,nodiscard /
python3 -c "file = open('/big', 'wb'); [file.write(b'x' * (1 << 20)) for _ in range(32)]" && sync
rm /big && sync
"""


@pytest.mark.vm
def test_on_request(demo: str, runner: Runner) -> None:
    assert runner.boot(demo, LOOP, "-d", "--name", "frees", "-m", "128m", "--network", "none").returncode == 0
    (disk,) = (runner.store / "sandboxes/frees").glob("disk.*")
    before = disk.stat().st_blocks * 512
    done = runner("exec", "-u", "0", "frees", "sh", "-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    written = disk.stat().st_blocks * 512 - before
    done = runner("trim", "--json", "frees")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    left = disk.stat().st_blocks * 512 - before
    assert (row["name"], row["bytes"]) == ("frees", written - left)
    assert row["bytes"] > 24 << 20
    assert left < 6 << 20
    assert runner("trim", "frees").stdout == "frees  0.0 MB\n"
    assert runner("stop", "-t", "0", "frees").returncode == 0
    assert "sandbox frees does not run" in runner("trim", "frees").stderr
    assert runner("rm", "-f", "frees").returncode == 0


@pytest.mark.vm
def test_a_root_in_memory_has_nothing_to_give(demo: str, runner: Runner) -> None:
    done = runner.boot(demo, LOOP, "-d", "--name", "fixed", "-m", "128m", "--network", "none", "--read-only")
    assert done.returncode == 0, done.stderr
    done = runner("trim", "fixed")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "runner: sandbox fixed: this root gives nothing back to the host\n"
    assert runner("rm", "-f", "fixed").returncode == 0
