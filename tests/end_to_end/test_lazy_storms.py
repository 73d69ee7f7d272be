"""Many sandboxes of one disk that is still being fetched, and whoever is killed: one fetch for all, nothing left over."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rootdisk.artifact.format import ChunkIndex
from rootdisk.artifact.published import open_artifact
from rootdisk.oci.documents import Descriptor, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.chunks import CONNECTIONS
from runner.store.store import Store
from tests.support.commands import Runner, run
from tests.support.faults import PIECE_BYTES, FaultProxy, run_faults
from tests.support.fetches import bytes_served
from tests.support.nbd import server_of
from tests.support.processes import open_files
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.sandboxes import command
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, needs_registry, pytest.mark.nightly]

KILLS = 25  # of a test
KILLED = ("server", "keeper", "machine", "runner")


@dataclass(frozen=True)
class Published:
    """The demo at a registry, behind a proxy."""

    proxy: FaultProxy
    index: ChunkIndex
    blobs: tuple[Descriptor, ...]

    @property
    def name(self) -> str:
        return f"{self.proxy.name}/demo:1"

    @property
    def served(self) -> list[int]:
        return bytes_served(self.proxy, self.index, self.blobs)


@pytest.fixture
def published(registry: RunningRegistry, demo: str) -> Iterator[Published]:
    done = run("imagetool", "copy", "--plain-http", demo, f"{registry.name}/demo:1")
    assert done.returncode == 0, done.stderr
    reference = parse_reference(f"{registry.name}/demo:1")
    with open_artifact(reference, Platform.host(), RegistryOptions(plain_http=True)) as artifact:
        index = artifact.index
        blobs = artifact.roles.disk
    with run_faults(registry.name) as proxy:
        yield Published(proxy, index, blobs)


@pytest.fixture
def lazy_runner(empty_runner: Runner) -> Iterator[Runner]:
    yield empty_runner
    for pid in server_of(Store(empty_runner.store)):
        os.kill(pid, signal.SIGTERM)


def processes(runner: Runner) -> dict[str, list[int]]:
    """What runs for the store, by its part."""
    found: dict[str, list[int]] = {name: [] for name in KILLED}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            fds = " ".join(open_files(process.name).values())
            if str(runner.store) not in fds:
                continue
            for name, start in (("server", b"runner: serves"), ("keeper", b"runner: keeps")):
                if words.startswith(start):
                    found[name].append(int(process.name))
            if b"qemu-system" in words.partition(b"\0")[0]:
                found["machine"].append(int(process.name))
    return found


def test_ten_sandboxes_at_once_on_an_empty_store(lazy_runner: Runner, published: Published) -> None:
    """Each chunk is requested once, by one server; the registry is the witness."""
    published.proxy.pause_s = 0.001
    options = ("--plain-http", "--pull", "lazy", "--memory", "256m", "--entrypoint", "/bin/cat")
    boots = [command(lazy_runner, "boot", *options, published.name, "/etc/hostname") for _ in range(10)]
    servers: set[int] = set()
    while any(boot.poll() is None for boot in boots):
        servers |= set(server_of(Store(lazy_runner.store)))
        time.sleep(0.1)
    for boot in boots:
        output, errors = boot.communicate()
        assert boot.returncode == 0, errors
        assert output.strip()
    assert len(servers) == 1
    until(lambda: not server_of(Store(lazy_runner.store)))
    until(lambda: not published.proxy.giving)
    assert published.served == [chunk.blob_length for chunk in published.index.chunks if not chunk.zero]
    assert len(lazy_runner.digests()) == 1
    assert lazy_runner("verify").stdout.endswith(", 0 damaged\n")


def victims_of(runner: Runner, boot: subprocess.Popen[bytes], who: str) -> list[int]:
    return [boot.pid] if who == "runner" or boot.poll() is not None else processes(runner)[who]


def settled(runner: Runner, boots: list[subprocess.Popen[bytes]]) -> bool:
    """Whether everything of ended boots has gone."""
    left = processes(runner)
    return all(boot.poll() is not None for boot in boots) and not left["keeper"] and not left["machine"]


@pytest.mark.parametrize("seed", range(4))  # a hundred kills in all; six minutes each
def test_whoever_is_killed(lazy_runner: Runner, published: Published, seed: int) -> None:
    """Kill a server, keeper, machine or runner at random moments of boots: nothing is left, and nothing is fetched again."""
    runner, proxy, choose = lazy_runner, published.proxy, random.Random(seed)
    proxy.pause_s = PIECE_BYTES / (1 << 20)
    options = ("--plain-http", "--pull", "lazy", "--memory", "128m", "--entrypoint", "/bin/cat")
    counts = dict.fromkeys(KILLED, 0)
    endings: dict[str, set[int]] = {name: set() for name in KILLED}
    complete = lost = 0
    size = sum(chunk.blob_length for chunk in published.index.chunks if not chunk.zero)
    longest = max(chunk.blob_length for chunk in published.index.chunks)
    for _ in range(KILLS):
        boot = command(runner, "boot", *options, published.name, "/etc/hostname")
        who = choose.choice(KILLED)
        victims = until(lambda: victims_of(runner, boot, who))  # noqa: B023 - called at once
        time.sleep(choose.uniform(0, 4))
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                counts[who] += 1
        output, errors = boot.communicate(timeout=300)
        endings[who].add(boot.returncode)
        assert b"Traceback" not in errors, errors
        if who == "server":
            assert boot.returncode == 0, (who, errors)
            assert output.strip()
        until(lambda: settled(runner, [boot]))  # noqa: B023 - called at once
        lost += who == "server"
        print(counts, endings, f"{complete} times complete", flush=True)
        if (runner.store / "disks").exists() and list((runner.store / "disks").glob("*.raw")):
            until(lambda: not server_of(Store(runner.store)) and not proxy.giving)
            complete += 1
            # A killed server loses the chunks under way, and what is in buffers. The next one asks for a chunk as proof.
            assert sum(published.served) <= size + (lost + 1) * CONNECTIONS * (longest + 2 * PIECE_BYTES)
            lost = 0
            proxy.served.clear()
            for path in (runner.store / "disks").glob("*.raw"):
                path.unlink()
    proxy.pause_s = 0
    done = runner("pull", "--plain-http", published.name)
    assert done.returncode == 0, done.stderr
    assert runner("verify").stdout.endswith(", 0 damaged\n")
    until(lambda: not server_of(Store(runner.store)))
    runner("prune")
    assert json.loads(runner("ps", "-a", "--json").stdout) == []
    assert os.listdir(runner.store / "sandboxes") == []
    assert os.listdir(runner.store / "lazy") == []
    assert not list((runner.store / "disks").glob("*.partial"))
    assert all(not pids for pids in processes(runner).values())
