"""Sandboxes as tasks of Ray, as docs/howto/ray.md has them: two nodes on this machine, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner
from tests.support.pages import blocks
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.nightly]
RAY = "ray==2.60.0"
NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
cluster.add_node(num_cpus=2)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
# Where each task ran, and the number of its worker's process, for tests that kill it.
WATCHED = """
import os, sys, time
import ray
from page import run
from runner import Sandbox

ray.init(log_to_driver=False)

@ray.remote(num_cpus=1, max_retries=0)
def wait(place, **options):
    with Sandbox.boot(os.environ["ARTIFACT"], ["sleep", "infinity"], entrypoint="", network="none", **options) as sandbox:
        with open(f"{place}/{ray.get_runtime_context().get_node_id()}", "w") as file:
            file.write(str(os.getpid()))
        return sandbox.wait()
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has Ray, and what the runner needs."""
    place = tmp_path_factory.mktemp("ray") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=120)
    pip = [str(place / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    subprocess.run([*pip, RAY, *needed], check=True, timeout=500)
    (program,) = (block.text for block in blocks("howto/ray.md") if block.language == "python")
    (place / "page.py").write_text(program)
    return place / "bin/python"


class Cluster:
    """Two nodes, and programs that use them."""

    def __init__(self, python: Path, store: Path, artifact: str) -> None:
        self.python, self.store = python, store
        paths = os.pathsep.join([str(ROOT), str(python.parents[1])])
        own = {"PYTHONPATH": paths, "ROOTDISK_STORE": str(store), "ARTIFACT": artifact, "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = {**os.environ, **own}

    def start(self, program: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen([str(self.python), "-c", program], env=self.environment, **pipes)  # type: ignore[call-overload,no-any-return]

    def run(self, program: str) -> str:
        with self.start(program) as process:
            said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return str(said)

    def left(self) -> list[str]:
        return os.listdir(self.store / "sandboxes")


@pytest.fixture(scope="module")
def cluster(python: Path, runner: Runner, demo: str) -> Iterator[Cluster]:
    assert runner("pull", demo).returncode == 0
    cluster = Cluster(python, runner.store, demo)
    with cluster.start(NODES) as nodes:
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        try:
            cluster.environment["RAY_ADDRESS"] = nodes.stdout.readline().strip()
            yield cluster
        finally:
            nodes.stdin.close()
            nodes.wait(120)


def test_the_page_s_tasks(cluster: Cluster) -> None:
    said = cluster.run("import runpy; runpy.run_module('page', run_name='__main__')").splitlines()
    assert said[0] == "[(0, '0\\n'), (1, '1\\n'), (2, '4\\n'), (3, '9\\n')]"
    assert said[1] == "(124, 'exec: the program did not end within 1 s, and was killed')"
    assert cluster.left() == []


def test_a_sandbox_s_time_limit(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.run(f"{WATCHED}\nprint(ray.get(wait.remote({str(tmp_path)!r}, timeout=30)))") == "124\n"
    assert cluster.left() == []


@pytest.mark.parametrize("end", ["cancel", "force", "worker", "driver"])
def test_nothing_is_left(cluster: Cluster, tmp_path: Path, end: str) -> None:
    program = f"""{WATCHED}
tasks = [wait.options(scheduling_strategy="SPREAD").remote({str(tmp_path)!r}) for _ in range(2)]
sys.stdin.readline()
for task in tasks:
    ray.cancel(task, force={end == "force"})
for task in tasks:
    try:
        ray.get(task)
    except ray.exceptions.RayError as error:
        print(type(error).__name__)
"""
    with cluster.start(program) as driver:
        assert driver.stdin is not None
        # One on each node.
        until(lambda: len([path for path in tmp_path.iterdir() if path.read_text()]) == 2, 200)
        assert len(cluster.left()) == 2
        if end == "driver":
            driver.kill()
        for path in tmp_path.iterdir() if end == "worker" else ():
            os.kill(int(path.read_text()), signal.SIGKILL)
        is_asked = end in ("cancel", "force")
        until(lambda: is_asked or cluster.left() == [], 60)
        said, _ = driver.communicate("go\n" if is_asked else None, timeout=120)
    until(lambda: cluster.left() == [], 60)
    errors = [line for line in said.splitlines() if "Error" in line]  # also RayTaskError(TaskCancelledError)
    assert len(errors) == (0 if end == "driver" else 2), said
