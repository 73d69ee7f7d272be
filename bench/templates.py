"""Sandboxes from a template beside cold boots: the whole command, and the memory of eight idle ones."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import guest
from bench.measure import Contender, Measured, Run, usual_environment
from bench.rows import Row
from bench.work import Bench, clean

RUNNER = (sys.executable, "-m", "runner")
IDLE_COUNT = 8
IDLE_COUNTS = (1, 10, 50)  # of which the memory is measured too
PROGRAM = "/small"  # of the image
DEADLINE_S = 300
SETTLE_S = 2.0  # for an idle guest to be idle


def rows(bench: Bench) -> list[Row]:
    """Return the row of `runner boot` to the end of a small program, with what eight idle guests take."""
    room = bench.work / "templates"
    room.mkdir()
    store = {"ROOTDISK_STORE": str(room / "store"), "ROOTDISK_TEMPLATES": "1"}
    try:
        reference = guest.reference(bench, room)
        boot = [*RUNNER, "boot", "--network", "none"]
        subprocess.run([*boot, reference], check=True, env={**usual_environment(), **store}, stdout=subprocess.DEVNULL)
        _wait_for_template(room / "store")
        warm, cold = bench.measured(
            Contender("from a template", [*boot, reference], lambda: None, store),
            Contender("cold", [*boot, "--cold", reference], lambda: None, store),
        )
        how = ["--network", "none", reference, "wait"]
        idle = [_idle_mb(store, [*options, *how], IDLE_COUNT) for options in ([], ["--cold"])]
        words = [f"{IDLE_COUNT} idle: {size:.0f} MB" for size in idle]
        counts = IDLE_COUNTS if bench.rounds > 1 else IDLE_COUNTS[:1]
        some = ", ".join(f"{_idle_mb(store, how, count):.0f}" for count in counts)
        words[0] += f" ({', '.join(map(str, counts))} idle: {some} MB)"
        return [
            Row("runner boot, from a template", "runner boot --cold", {"wall": 0.25}, warm, cold, " / ".join(words)),
            *_program_rows(bench, store, [*boot, reference, "clock"]),
            _saving_row(bench, room / "store", [*boot, reference]),
            _snapshot_row(bench, reference, store, idle[1]),
        ]
    finally:
        clean(room)


def _program_rows(bench: Bench, store: Mapping[str, str], command: Sequence[str]) -> list[Row]:
    """Return the rows of the time to the program's first output, and of how far its clock is off, at most, when it starts.

    The program says what time it is between the start of the command and its output: that is as much as can be seen from outside.
    """
    first, off = [], []
    for _ in range(max(bench.rounds, 1)):
        before = time.time()
        with subprocess.Popen(command, env={**usual_environment(), **store}, stdout=subprocess.PIPE, text=True) as boot:
            assert boot.stdout is not None
            said = boot.stdout.readline()
            after = time.time()
        if boot.returncode:
            raise subprocess.CalledProcessError(boot.returncode, command)
        first.append(after - before)
        off.append(max(before - float(said), float(said) - after, 0.0))
    return [
        Row(name, "", {"wall": goal}, Measured(tuple(Run(0, s, 0, 0, 0) for s in found), 0))
        for name, goal, found in (
            ("runner boot, from a template, to its first output", 0.5, first),
            ("clock of a guest from a template, off by", 0.05, off),
        )
    ]


def _saving_row(bench: Bench, store: Path, command: Sequence[str]) -> Row:
    """Return the row of a boot that has a template made beside it, and of one that has not."""

    def forget() -> None:
        """Remove the template, when nobody makes one."""
        _wait_for_template(store)
        for folder in store.glob("templates/[0-9a-f]*"):
            clean(folder)

    environment = {"ROOTDISK_STORE": str(store)}
    saving, alone = bench.measured(
        Contender("saves a template", command, forget, {**environment, "ROOTDISK_TEMPLATES": "1"}),
        Contender("without", command, lambda: _wait_for_template(store), {**environment, "ROOTDISK_TEMPLATES": "0"}),
    )
    return Row("runner boot, the first", "ROOTDISK_TEMPLATES=0", {"wall": 1.10}, saving, alone)


def _snapshot_row(bench: Bench, reference: str, store: Mapping[str, str], cold_mb: float) -> Row:
    """Return the row of a detached boot and the first output of `exec` in it, from a snapshot and cold.

    It says for how long the snapshot's sandbox stood still, and what eight idle guests from it take.
    """
    environment = {**usual_environment(), **store}
    cold = ["--cold", "--network", "none", reference, "wait"]
    boot = [*RUNNER, "boot", "-d", "--name", "saved", "-m", "512m", *cold]
    subprocess.run(boot, check=True, env=environment, stdout=subprocess.DEVNULL)
    try:
        save = [*RUNNER, "snapshot", "saved", "bench"]
        said = subprocess.run(save, check=True, env=environment, capture_output=True, text=True).stderr
    finally:
        subprocess.run([*RUNNER, "rm", "--force", "saved"], env=environment, stdout=subprocess.DEVNULL, check=False)
    pause = said.partition("stood still for ")[2].partition(";")[0]

    def remove() -> None:
        """Remove the sandbox of the run before."""
        subprocess.run([*RUNNER, "rm", "--force", "run"], env=environment, capture_output=True, check=False)

    def contender(name: str, how: Sequence[str]) -> Contender:
        """Return a boot and an exec as one command."""
        start = shlex.join([*RUNNER, "boot", "-d", "--name", "run", *how])
        command = ["/bin/sh", "-c", f"{start} && {shlex.join([*RUNNER, 'exec', 'run', PROGRAM])}"]
        return Contender(name, command, remove, store)

    forks, booted = bench.measured(
        contender("from a snapshot", ["--from", "bench"]), contender("cold", ["-m", "512m", *cold])
    )
    remove()
    words = [
        f"pause {pause}, {IDLE_COUNT} idle: {_idle_mb(store, ['--from', 'bench'], IDLE_COUNT):.0f} MB",
        f"{cold_mb:.0f} MB",
    ]
    return Row(
        "runner boot --from and exec", "runner boot --cold and exec", {"wall": 0.25}, forks, booted, " / ".join(words)
    )


def _wait_for_template(store: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not list(store.glob("templates/[0-9a-f]*/template.json")):
        if time.monotonic() > deadline:
            reasons = [path.read_text() for path in store.glob("templates/*.failed")]
            raise RuntimeError(f"no template within {DEADLINE_S} s: {reasons}")
        time.sleep(0.1)


def _idle_mb(store: Mapping[str, str], how: Sequence[str], count: int) -> float:
    """Return the memory (PSS) of the machines and keepers of idle sandboxes, and of the memory that they share, in MB."""
    environment = {**usual_environment(), **store}
    names = [f"idle-{number}" for number in range(count)]
    for name in names:
        command = [*RUNNER, "boot", "-d", "--name", name, *how]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    try:
        time.sleep(SETTLE_S)
        done = subprocess.run([*RUNNER, "ps", "--json"], check=True, env=environment, capture_output=True)
        keepers = [row["pid"] for row in json.loads(done.stdout)]
        children = [
            int(word) for pid in keepers for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
        return sum(map(_pss_kb, [*keepers, *children])) / 1e3
    finally:
        subprocess.run([*RUNNER, "rm", "--force", *names], env=environment, stdout=subprocess.DEVNULL, check=False)


def _pss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0
