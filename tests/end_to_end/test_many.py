"""Many sandboxes of one base at once: every one right, none mixed up, and the runner's own cost does not grow."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.commands import Runner

pytestmark = pytest.mark.vm


def own_cost(runner: Runner) -> tuple[float, float]:
    """Proportional memory of a keeper, MB, and its processor time, seconds: the medians over all that run."""
    memory, times = [], []
    for row in json.loads(runner("ps", "--json").stdout):
        place = Path(f"/proc/{row['pid']}")
        rollup = (place / "smaps_rollup").read_text()
        memory.append(next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1e3)
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        times.append((int(fields[11]) + int(fields[12])) / 100)
    return sorted(memory)[len(memory) // 2], sorted(times)[len(times) // 2]


@pytest.mark.nightly
def test_fifty_at_once(demo: str, tmp_path: Path) -> None:
    """Started eight at a time from an empty store; the base is the same after it."""
    runner = Runner(tmp_path / "store")
    costs = {}

    def one(number: int) -> subprocess.CompletedProcess[str]:
        options = ("-d", "--rm", "--name", f"many-{number}", "-m", "96m", "--network", "none")
        script = f"echo {number} > /sandbox/mine; sync; exec sleep 3600"
        return runner.boot(demo, script, *options, timeout=1200)

    started = 0
    try:
        for count in (1, 10, 50):
            with ThreadPoolExecutor(8) as pool:
                for done in pool.map(one, range(started, count)):
                    assert done.returncode == 0, done.stderr
            started = count
            costs[count] = own_cost(runner)
        print("keeper, MB and s:", costs)
        assert len(json.loads(runner("ps", "--json").stdout)) == 50
        for number in range(50):
            assert runner("exec", f"many-{number}", "cat", "/sandbox/mine", timeout=300).stdout == f"{number}\n"
        assert runner("verify").returncode == 0
    finally:
        runner("rm", "-f", *(f"many-{number}" for number in range(started)), timeout=600)
    assert not list((runner.store / "sandboxes").iterdir())
    assert costs[50][0] < 1.3 * costs[1][0] + 2
