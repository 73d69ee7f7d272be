"""Sandboxes as a user starts and sees them, and what is in their state."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runner.sandbox.state import Spec
from runner.store.pull import StoredArtifact
from tests.support.commands import ROOT, Runner
from tests.support.processes import open_files

# A program that goes on until it is stopped.
LOOP = """
trap 'echo bye; exit 3' TERM
echo out; echo err >&2
while :; do sleep 0.1; done
"""


def command(runner: Runner, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The runner's command as a process that goes on."""
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments],
        env={**os.environ, "ROOTDISK_STORE": str(runner.store), "PYTHONPATH": str(ROOT)},
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def rows(runner: Runner, *options: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(runner("ps", "--json", *options).stdout)}


def machines(runner: Runner, name: str) -> list[int]:
    """Processes that QEMU's command line or directory shows to be of this sandbox."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if b"qemu-system" in (process / "cmdline").read_bytes() and any(
                str(runner.store / "sandboxes" / name) in file for file in open_files(process.name).values()
            ):
                found.append(int(process.name))
    return found


def spec_of(name: str, local: StoredArtifact, *, keep: bool = False) -> Spec:
    """What a sandbox of this artifact has in its state."""
    return Spec(
        name, "oci:x", str(local.digest), local.disk.stem, local.config_digest.hex, None, None, 1, 64, 1, keep=keep
    )
