"""The old name of rootdisk.system.stdio, for copies of dodo.py from before 0.2. It goes with the release after that."""

from __future__ import annotations

from rootdisk.system.stdio import *  # noqa: F403
