"""The old name of rootdisk.errors, for copies of dodo.py from before 0.2. It goes with the release after that."""

from __future__ import annotations

from rootdisk.errors import *  # noqa: F403
