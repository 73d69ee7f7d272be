"""The end of a sandbox's run: how it ended, and what is left of the sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NamedTuple

from runner.sandbox.prepare import PreparedSandbox

FAILED = 125
TIMED_OUT, KILLED = 124, 128 + signal.SIGKILL
SPARE = "spare"  # reserved space for the last state, in case the disk is full


class Silent(Exception):
    """The machine has sent nothing at all."""


class Gone(Exception):
    """The client of a foreground sandbox has disconnected."""


class Ended(NamedTuple):
    """The end of a run."""

    started: float  # Unix time
    status: int
    error: str
    by: str = ""  # BY_USER, BY_HOST


def finish(prepared: PreparedSandbox, ended: Ended) -> None:
    """Write the last state of a sandbox that is kept, remove another one, and let go of it."""
    sandbox = prepared.sandbox
    if prepared.spec.keep:
        for name in ("control", SPARE):
            with contextlib.suppress(OSError):
                os.unlink(sandbox.folder / name)
        try:
            sandbox.write_state(started=ended.started, status=ended.status, error=ended.error, ended_by=ended.by)
        except OSError as err:  # `ps` then lists it as cut off
            print(f"state.json: {err.strerror}", file=sys.stderr)
    else:
        sandbox.remove()
    sandbox.release()
    prepared.artifact.release()
