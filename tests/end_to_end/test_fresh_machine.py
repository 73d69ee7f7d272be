"""README's two commands on a fresh machine: the steps of our own CI, in minimal Debians that mmdebstrap makes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.commands import ROOT
from tests.support.mounts import mounted, needs_root

JOB: Any = YAML(typ="safe").load((ROOT / ".github/workflows/fresh-machine.yml").read_text())["jobs"]["debian"]
MACHINES = {machine["image"]: machine["python"] for machine in JOB["strategy"]["matrix"]["include"]}
SUITES = {"debian:12": "bookworm", "debian:13": "trixie"}
STEPS = {step["name"]: step["run"].strip() for step in JOB["steps"] if "run" in step}
TIMEOUT_S = 2 * 3600


def test_readme_names_what_is_tried() -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^    \./quickstart.*\n    \./quickstart test.*\n", text, re.MULTILINE)
    assert block is not None
    for image, python in MACHINES.items():
        assert f"{image.replace('debian:', 'Debian ')} (Python {python}" in text
    said = [line.split("#")[0].split() for line in block[0].splitlines()]
    ours = [STEPS["Demo"].split(), STEPS["Tests"].split()[:2]]
    assert said == ours
    assert SUITES.keys() == MACHINES.keys()


@needs_root
@pytest.mark.root
def test_too_little_room_is_said_before_anything_runs(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as place:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        argv = [sys.executable, "-m", "pytest", "-m", "not nightly"]
        done = subprocess.run(
            argv, cwd=ROOT, env={**environment, "TMPDIR": str(place)}, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stdout == ""
    assert re.fullmatch(
        r"ERROR: too little room: .* has 0 GB free, the tests need \d+ GB; set TMPDIR .*", done.stderr.strip()
    )


@pytest.mark.nightly
@pytest.mark.root
@needs_root
@pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")
@pytest.mark.parametrize("image", MACHINES)
def test_a_fresh_machine(image: str, tmp_path: Path) -> None:
    """Each step passes, and no test of the main job is skipped."""
    machine = tmp_path / "machine"
    environment = {**os.environ, "FRESH": str(machine)}
    try:
        for name, step in STEPS.items():
            argv = [str(ROOT / "tests/support/fresh.sh"), SUITES[image], "env", f"PYTHON={MACHINES[image]}"]
            with (tmp_path / "log").open("w+") as log:
                done = subprocess.run(
                    [*argv, "sh", "-ec", step],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=TIMEOUT_S,
                )
                log.seek(0)
                said = log.read()
            assert done.returncode == 0, f"{name}: {said[-8000:]}"
            assert "test_main_job" not in said
            environment["CLONE"] = "keep"
    finally:
        shutil.rmtree(machine, ignore_errors=True)  # too large to be kept, even of a failure
