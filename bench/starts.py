"""Measure how long the runner takes, beyond the start of Python: for --help, and from a warm store to the start of QEMU."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.measure import Contender, Measured, Run
from bench.rows import Row
from bench.transfer import artifact_of
from bench.work import Bench, clean
from rootdisk.oci.documents import Platform
from runner.machine.qemu import PROGRAMS

FAILED = 125  # the runner's status, as its QEMU says nothing
ROUNDS = 10  # more than of other rows: they are short

BARE = Contender("python", [sys.executable, "-c", "pass"], lambda: None)

QEMU = """#!/bin/sh
[ $# -gt 4 ] || exit 0  # it is only asked which machines there are
date +%s%N >"{stamp}"
"""


def rows(bench: Bench, image: Path) -> list[Row]:
    """Both, of the artifact of `image`."""
    rounds = max(bench.rounds, ROUNDS) if bench.rounds else 0
    runner = shutil.which("runner", path=str(Path(sys.executable).parent))
    command = [runner] if runner else [sys.executable, "-m", "runner"]
    bare, ours = bench.measured(BARE, Contender("ours", [*command, "--help"], lambda: None), rounds=rounds)
    own = Measured(
        tuple(_beyond(run, start, run.wall_s) for run, start in zip(ours.runs, bare.runs, strict=True)), ours.peak_bytes
    )
    return [Row("runner --help", "", {"wall": 0.06}, own), _boot(bench, image, command, rounds)]


def _beyond(run: Run, bare: Run, wall_s: float) -> Run:
    """`wall_s` of the run less what Python took to start at about the same time."""
    return replace(run, wall_s=wall_s - bare.wall_s)


def _boot(bench: Bench, image: Path, command: list[str], rounds: int) -> Row:
    """Wall time ends with the first line of a program in QEMU's place; everything else is of the whole command."""
    # QEMU's stand-in is a user of its own when the bench is root's, and knows no variable of ours.
    programs = Path(tempfile.mkdtemp(prefix="bench-"))
    programs.chmod(0o777)
    stamp = programs / "started"
    store = bench.work / "store"
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "ROOTDISK_STORE": str(store)}
    stamps: list[int] = []

    def note() -> None:
        if stamp.exists():
            stamps.append(int(stamp.read_text()))
            stamp.unlink()

    try:
        artifact = artifact_of(bench, image)
        program = programs / PROGRAMS[Platform.host().architecture]
        program.write_text(QEMU.format(stamp=stamp))
        program.chmod(0o755)
        boot = Contender("ours", [*command, "boot", f"oci:{artifact}:1"], note, environment, status=FAILED)
        if not rounds:  # the first run fills the store
            bench.measured(boot, rounds=0)
        bare, found = bench.measured(BARE, boot, rounds=rounds)
        note()
        ends = stamps[-len(found.runs) :]
        runs = [
            _beyond(run, start, (end - run.started_ns) / 1e9)
            for run, start, end in zip(found.runs, bare.runs, ends, strict=True)
        ]
        return Row("runner boot, warm, to QEMU's start", "", {"wall": 0.1}, Measured(tuple(runs), found.peak_bytes))
    finally:
        clean(store, programs)
