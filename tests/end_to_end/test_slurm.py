"""Sandboxes as jobs of Slurm, as docs/howto/slurm.md has them: two nodes, one shared artifact, and nothing left behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner
from tests.support.krun import FakeKrun, needs_compiler
from tests.support.slurm import Slurm, needs_slurm, run_slurm
from tests.support.stores import of_store
from tests.support.waiting import until

pytestmark = [needs_slurm, pytest.mark.nightly]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    (tmp_path / "slurm").mkdir()
    with run_slurm(tmp_path / "slurm") as running:
        yield running


def script(runner: Runner, *words: str, **env: object) -> str:
    """A batch script that boots a sandbox."""
    variables = {"ROOTDISK_STORE": runner.store, "PYTHONPATH": ROOT, **env}
    exports = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
    return f"#!/bin/sh\n{exports}echo node $SLURMD_NODENAME\nexec {sys.executable} -m runner boot {' '.join(words)}\n"


def left(runner: Runner) -> list[str]:
    return [path.name for path in (runner.store / "sandboxes").iterdir()]


def leaves_nothing(runner: Runner) -> bool:
    """No process, and no file that the next boot would not remove: Slurm may kill a keeper that is removing its own."""
    return of_store(runner.store) == [] and runner("prune").returncode == 0 and left(runner) == []


def is_over(slurm: Slurm, job: str) -> bool:
    return all(task["JobState"] not in ("PENDING", "RUNNING", "COMPLETING") for task in slurm.tasks(job).values())


@pytest.mark.vm
def test_an_array_on_both_nodes(demo: str, runner: Runner, slurm: Slurm) -> None:
    assert runner("pull", demo).returncode == 0
    words = ("--network none --entrypoint sh -e TASK=$SLURM_ARRAY_TASK_ID", demo, "-c 'echo task $TASK; exit $TASK'")
    job = slurm.submit(script(runner, *words), "--array=0-3")
    until(lambda: is_over(slurm, job), 600)
    tasks = slurm.tasks(job)
    assert {number: task["ExitCode"] for number, task in tasks.items()} == {str(n): f"{n}:0" for n in range(4)}
    said = [(slurm.room / f"out.{job}.{n}").read_text() for n in range(4)]
    assert all(f"task {n}" in text for n, text in enumerate(said))
    assert {text.split()[1] for text in said} == {"n1", "n2"}
    assert left(runner) == []


@needs_compiler
def test_statuses(demo: str, runner: Runner, slurm: Slurm, tmp_path: Path) -> None:
    """As the test above, with a stand-in for the machine, whose program ends with status 7."""
    fake = FakeKrun.build(tmp_path)
    assert runner("pull", demo).returncode == 0
    text = script(runner, "--backend krun --accel kvm --network none", demo, ROOTDISK_LIBKRUN=fake.path)
    job = slurm.submit(text, "--array=0-5")
    until(lambda: is_over(slurm, job), 120)
    assert [task["ExitCode"] for task in slurm.tasks(job).values()] == ["7:0"] * 6
    said = [(slurm.room / f"out.{job}.{n}").read_text().splitlines() for n in range(6)]
    assert all("from the guest" in lines for lines in said)
    assert {lines[0] for lines in said} == {"node n1", "node n2"}
    assert left(runner) == []


@needs_compiler
def test_ends(demo: str, runner: Runner, slurm: Slurm, tmp_path: Path) -> None:
    fake = FakeKrun.build(tmp_path)
    fake.plays("sleep")
    assert runner("pull", demo).returncode == 0
    text = script(runner, "--backend krun --accel kvm --network none", demo, ROOTDISK_LIBKRUN=fake.path)
    job = slurm.submit(text, "--array=0-3")
    until(lambda: len(left(runner)) == 4, 120)
    slurm.run("scancel", job)
    until(lambda: is_over(slurm, job), 60)
    until(lambda: leaves_nothing(runner), 30)
    assert {task["JobState"] for task in slurm.tasks(job).values()} == {"CANCELLED"}

    limited = slurm.submit(text, "--time=1")
    until(lambda: len(left(runner)) == 1, 120)
    until(lambda: is_over(slurm, limited), 200)
    assert {task["JobState"] for task in slurm.tasks(limited).values()} == {"TIMEOUT"}
    until(lambda: leaves_nothing(runner), 30)
