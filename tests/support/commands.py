"""The project's folder, and its commands as a user runs them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rootdisk.durable import data_runs

ROOT = Path(__file__).parents[2]


# What rootdisk/cli/progress.py says of a step that takes more than two seconds: on a slow machine of any.
_PROGRESS = re.compile(r".*( …|: \d+ of \d+ MB(, \d+ s left)?|: \d+ MB in \d+ s)\n")


def without_progress(said: str) -> str:
    """What a quick machine says on standard error."""
    return "".join(line for line in said.splitlines(keepends=True) if not _PROGRESS.fullmatch(line))


def run(
    *argv: str, cwd: Path = ROOT, timeout: float = 300, binary: bool = False, **env: str
) -> subprocess.CompletedProcess[Any]:
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=not binary,
        timeout=timeout,
    )
    if not binary:
        done.stderr = without_progress(done.stderr)
    return done


@dataclass(frozen=True)
class Runner:
    """The command, with a store of its own."""

    store: Path
    defaults: tuple[str, ...] = ()

    def __call__(
        self, command: str, *arguments: str, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
        environment: dict[str, Any] = {"ROOTDISK_STORE": str(self.store), **env}
        return run("runner", command, *self.defaults, *arguments, timeout=timeout, **environment)

    def boot(
        self, artifact: str, script: str, *options: str, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """A shell script in a sandbox."""
        return self("boot", "--entrypoint", "/bin/sh", *options, artifact, "--", "-c", script, timeout=timeout, **env)

    def digests(self) -> dict[str, str]:
        """Of every disk in the store: where it has data, and which."""
        found = {}
        for path in (self.store / "disks").glob("*.raw"):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for start, end in data_runs(file.fileno()):
                    digest.update(f"{start} {end} ".encode())
                    for at in range(start, end, 1 << 20):
                        digest.update(os.pread(file.fileno(), min(1 << 20, end - at), at))
            found[path.name] = digest.hexdigest()
        return found
