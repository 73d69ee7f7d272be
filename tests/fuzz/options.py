"""What the environment says of a long run."""

from __future__ import annotations

import os

SECONDS = float(os.environ.get("FUZZ_SECONDS", "120"))
KEPT = os.environ.get("FUZZ_CORPUS", "")
