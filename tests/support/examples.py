"""How many examples hypothesis tries, if a test has fixtures of its own."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

some = settings(
    max_examples=int(os.environ.get("ROOTDISK_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
