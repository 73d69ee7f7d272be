"""Killed at any moment of pull, clone, boot, run and prune: the store verifies clean, and the next run succeeds."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support.commands import Runner
from tests.support.stores import of_store, start
from tests.support.waiting import until

pytestmark = pytest.mark.vm

NAME = "victim"


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.nightly)])
def test_killed_at_random_moments(demo: str, tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    store = tmp_path / "store"
    runner = Runner(store)
    boot = ("boot", "--name", NAME, "--network", "none", "-m", "128m", "--entrypoint", "/bin/sh", demo, "--", "-c")
    script = "i=0; while [ $i -lt 20 ]; do echo $i > /sandbox/$i; i=$((i+1)); sleep 0.1; done"
    caught: dict[str, int] = {}
    for number in range(kills):
        if number % 10 == 0:  # the next one begins with an empty store
            shutil.rmtree(store, ignore_errors=True)
        keep = chance.random() < 0.3
        options = ["--keep"] if keep else []
        process = start(store, *boot[:3], *options, *boot[3:], script)
        other = start(store, "prune") if chance.random() < 0.3 else None
        time.sleep(chance.uniform(0.05, 3.5))
        pids = of_store(store)
        if pids:
            victims = pids if chance.random() < 0.3 else [chance.choice(pids)]
            for pid in victims:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended by itself
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    caught[name] = caught.get(name, 0) + 1
                    os.kill(pid, signal.SIGKILL)
        # Whoever lives on ends by itself: the client with an error, or the whole sandbox as usual.
        process.wait(60)
        if other is not None:
            other.wait(60)
        until(lambda: not of_store(store))
        done = runner("verify", "--json")
        assert done.returncode == 0, (number, done.stdout, done.stderr)
        if keep:
            runner("rm", NAME)
        if number % 5 == 4 or number == kills - 1:
            done = runner(*boot, "echo whole")
            assert (done.returncode, done.stdout) == (0, "whole\n"), (number, done.stderr)
            runner("prune", "--dry-run")  # which sweeps
            assert not list((store / "sandboxes").glob("[a-z]*"))
            assert not json.loads(runner("ps", "-a", "--json").stdout)
    print("killed:", caught)
