"""How long the runner itself takes: to say what it can, and to come from a warm store to QEMU's start."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from bench.measure import Contender, Measured
from bench.rows import Row
from bench.transfer import artifact_of
from bench.work import Bench, clean
from runner.oci import Platform
from runner.qemu import PROGRAMS

FAILED = 125  # the runner's status, as its QEMU says nothing
ROUNDS = 10  # more than of other rows: they are short

QEMU = """#!/bin/sh
date +%s%N >"$BENCH_STARTED"
"""


def rows(bench: Bench, image: Path) -> list[Row]:
    """Both, of the artifact of `image`."""
    rounds = max(bench.rounds, ROUNDS) if bench.rounds else 0
    runner = shutil.which("runner", path=str(Path(sys.executable).parent))
    command = [runner] if runner else [sys.executable, "-m", "runner"]
    (ours,) = bench.measured(Contender("ours", [*command, "--help"], lambda: None), rounds=rounds)
    return [Row("runner --help", "", {"wall": 0.06}, ours), _boot(bench, image, command, rounds)]


def _boot(bench: Bench, image: Path, command: list[str], rounds: int) -> Row:
    """Wall time ends with the first line of a program in QEMU's place; everything else is of the whole command."""
    store, programs = bench.work / "store", bench.work / "programs"
    stamp = bench.work / "started"
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "BENCH_STARTED": str(stamp),
        "ROOTDISK_STORE": str(store),
    }
    stamps: list[int] = []

    def note() -> None:
        if stamp.exists():
            stamps.append(int(stamp.read_text()))
            stamp.unlink()

    try:
        artifact = artifact_of(bench, image)
        programs.mkdir()
        program = programs / PROGRAMS[Platform.host().architecture]
        program.write_text(QEMU)
        program.chmod(0o755)
        boot = Contender("ours", [*command, "boot", f"oci:{artifact}:1"], note, environment, status=FAILED)
        if not rounds:  # the first run fills the store
            bench.measured(boot, rounds=0)
        (found,) = bench.measured(boot, rounds=rounds)
        note()
        ends = stamps[-len(found.runs) :]
        runs = [replace(run, wall_s=(end - run.started_ns) / 1e9) for run, end in zip(found.runs, ends, strict=True)]
        return Row("runner boot, warm, to QEMU's start", "", {"wall": 0.1}, Measured(tuple(runs), found.peak_bytes))
    finally:
        clean(store, programs)
