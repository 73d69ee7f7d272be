"""A guest that loads its keeper: memory stays bounded, and orders are answered meanwhile."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.answers import answering
from tests.support.commands import ROOT, Runner

GUEST = ROOT / "tests/end_to_end/guest"
pytestmark = [pytest.mark.vm, pytest.mark.nightly]
# 256 connections of 256 KiB in each direction, and what Python keeps of freed memory.
MORE_MAX_MIB = 160


def memory_mib(pid: int, what: str) -> int:
    match = re.search(rf"{what}:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) >> 10


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with answering() as server:
        yield server


def test_load(runner: Runner, demo: str, server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]) -> None:
    port = server.server_address[1]
    allow = ("--allow", f"app.test:{port}", "--add-host", "app.test:127.0.0.1", "-v", f"{GUEST}:/guest:ro")
    done = runner("boot", "-d", "--name", "load", *allow, "--entrypoint", "/bin/sleep", demo, "10000")
    assert done.returncode == 0, done.stderr
    keeper = int(json.loads(runner("inspect", "load").stdout)["pid"])
    before = memory_mib(keeper, "VmRSS")
    found: dict[str, dict[str, int]] = {}
    for kind in ("slow", "half", "opens", "bogus"):
        argv = [sys.executable, "-m", "runner", "exec", "load", "python3", "/guest/load.py", str(port), kind]
        environment = {"ROOTDISK_STORE": str(runner.store), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
            waits = []
            while load.poll() is None:
                start = time.monotonic()
                assert runner("logs", "--network", "--tail", "1", "load").returncode == 0
                assert runner("exec", "load", "true").returncode == 0
                waits.append(time.monotonic() - start)
            assert load.stdout is not None
            assert load.stderr is not None
            assert load.returncode == 0, load.stderr.read()
            found[kind] = ast.literal_eval(load.stdout.read())
        with capsys.disabled():
            now, peak = memory_mib(keeper, "VmRSS"), memory_mib(keeper, "VmHWM")
            worst = f"{max(waits):.2f} s of {len(waits)}" if waits else "none"
            print(
                f"\n{kind}: {found[kind]}, keeper {before} to {now} MiB, at most {peak}; slowest logs and exec: {worst}"
            )
        assert memory_mib(keeper, "VmHWM") < before + MORE_MAX_MIB
    assert found["slow"]["fast"] >= 4_000_000
    assert found["half"]["answered"] >= 100
    assert found["opens"]["opened"] > 9000
    assert found["bogus"]["refused"] > 0
    assert runner("stop", "-t", "5", "load").returncode == 0
    runner("rm", "-f", "load")
