"""The old name of imagetool.build.derivation, for copies of dodo.py from before 0.2. It goes with the release after that."""

from __future__ import annotations

import warnings

from imagetool.build.derivation import *  # noqa: F403

warnings.warn(
    "imagetool.recipe is imagetool.build.derivation now: take this release's dodo.py", DeprecationWarning, stacklevel=2
)
