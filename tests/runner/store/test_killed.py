"""`runner pull` killed or interrupted at any moment: the next one goes on where it was."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.store.chunks import CONNECTIONS, GAP_BYTES
from tests.support.artifacts import noise, publish, sample
from tests.support.faults import ALWAYS, PIECE_BYTES, Fault, FaultProxy, Kind
from tests.support.fetches import refetched, verified
from tests.support.processes import peak_bytes, until_it_waits
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.terminals import read_terminal
from tests.support.waiting import until

pytestmark = needs_registry

CHUNK = 128 << 10
MADE = sample([*noise(200, CHUNK), bytes(1 << 20), *noise(100, CHUNK, seed=1)])
RSS_MAX_BYTES = 150 << 20
# A kill loses, on each connection, the frame that was not complete and what lay in socket buffers; and small gaps are
# read once more.
LOST_BYTES = CONNECTIONS * (CHUNK + 8 * PIECE_BYTES + GAP_BYTES)


@pytest.fixture(scope="module")
def registry(registry: RunningRegistry) -> RunningRegistry:
    publish(MADE, f"{registry.name}/killed/a:v1", registry.options)
    return registry


def started(proxy: FaultProxy, store: Path, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runner", "pull", "--plain-http", f"{proxy.name}/killed/a:v1"],
        env={**os.environ, "ROOTDISK_STORE": str(store)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def wait_for_disk_request(proxy: FaultProxy, process: subprocess.Popen[str], before: int) -> None:
    until(lambda: process.poll() is not None or asked(proxy) != before, every_s=0.005)


def asked(proxy: FaultProxy) -> int:
    return sum(path.endswith(MADE.path) for _, path, _ in list(proxy.seen))


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_killed_at_random_moments(proxy: FaultProxy, tmp_path: Path, kills: int) -> None:
    moments = random.Random(kills)
    proxy.pause_s = PIECE_BYTES / (6 << 20)  # 6 MiB/s a connection
    killed = number = progressed = 0
    while killed < kills:
        store = tmp_path / f"store-{number}"
        number += 1
        proxy.served.clear()
        here = 0
        for _ in range(kills - killed):
            since, have = len(proxy.served), verified(store, MADE)
            process = started(proxy, store)
            wait_for_disk_request(proxy, process, asked(proxy))
            time.sleep(moments.uniform(0, 0.6))
            if process.poll() is not None:
                break
            process.kill()
            process.communicate()
            here += 1
            settle(proxy)
            assert refetched(proxy, since, MADE, have) <= GAP_BYTES
            progressed += len(verified(store, MADE)) > len(have)
            assert not list((store / "disks").glob("*.raw")) or len(verified(store, MADE)) == 0
        killed += here
        since, have = len(proxy.served), verified(store, MADE)
        process = started(proxy, store)
        assert peak_bytes(process) < RSS_MAX_BYTES
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        settle(proxy)
        assert refetched(proxy, since, MADE, have) <= GAP_BYTES
        (disk,) = (store / "disks").glob("*.raw")
        assert disk.read_bytes() == MADE.disk
        assert not list((store / "disks").glob("*.partial"))
        assert proxy.bytes_of(MADE.path) <= MADE.blob.size + here * LOST_BYTES
    assert progressed


def settle(proxy: FaultProxy) -> None:
    """Until the proxy has noticed that nobody listens."""
    until(lambda: not proxy.giving)


@pytest.mark.parametrize("kind", ["stall", "drip-head"])
def test_interrupted_while_the_server_is_slow(proxy: FaultProxy, tmp_path: Path, kind: Kind) -> None:
    """All connections wait for the rest of a body, or of a head; Ctrl-C does not."""
    proxy.add(Fault(kind, MADE.path, ALWAYS, skip=1, after=1_000_000, seconds=600 if kind == "stall" else 0.1))
    process = started(proxy, tmp_path / "store")
    # All parts are asked for at once, and one of them is served.
    until(lambda: any(path.endswith(MADE.path) and count > 1_000_000 for path, _, count in proxy.served), 60)
    until_it_waits(process, 0.2)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert (output, errors) == ("", "")
    assert time.monotonic() - begun < 30
    assert verified(tmp_path / "store", MADE)


def test_two_at_once_fetch_once(proxy: FaultProxy, tmp_path: Path) -> None:
    processes = [started(proxy, tmp_path / "store") for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert output.startswith("sha256:")
    # The second has the registry show that it has the disk: one chunk.
    assert proxy.bytes_of(MADE.path) <= MADE.blob.size + CHUNK + 1024


def test_progress_is_for_terminals(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.pause_s = PIECE_BYTES / (4 << 20)
    terminal, line = os.openpty()
    process = started(proxy, tmp_path / "store", stderr=line)
    os.close(line)
    shown = read_terminal(terminal)
    os.close(terminal)
    process.communicate()
    assert process.returncode == 0
    proxy.pause_s = 0
    assert re.search(rb"\rfetching \S+ \d+ of 39 MB, \d+ MB/s, \d+ s left", shown)
    again = started(proxy, tmp_path / "other")
    said = again.communicate()[1]
    assert said.splitlines()[-1].count("MB") == 3, said  # what was fetched, reused and left out
