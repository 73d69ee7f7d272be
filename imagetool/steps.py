"""The old name of imagetool.tasks.actions, for copies of dodo.py from before 0.2. It goes with the release after that."""

from __future__ import annotations

import warnings

from imagetool.tasks.actions import *  # noqa: F403

warnings.warn(
    "imagetool.steps is imagetool.tasks.actions now: take this release's dodo.py", DeprecationWarning, stacklevel=2
)
