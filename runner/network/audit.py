"""The record of connections: a line of JSON for each, in a log of bounded size; `runner logs --network`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from rootdisk.text import printable

LOG_NAME = "network.log"
LOG_MAX_BYTES = 1 << 20
ALLOWED, REFUSED, FAILED = "allowed", "refused", "failed"
_TEXT_MAX = 300


class Audit:
    """Writes lines to `write`, which bounds them."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def add(
        self,
        host: str,
        port: int,
        verdict: str,
        *,
        why: str = "",
        sent: int = 0,
        received: int = 0,
        secrets: Sequence[str] = (),
    ) -> None:
        """Add a line. `sent` and `received` are bytes, as the server counts them; `secrets` were inserted, by name."""
        line = {
            "time": round(time.time(), 3),
            "host": printable(host, _TEXT_MAX),
            "port": port,
            "verdict": verdict,
            "sent": sent,
            "received": received,
            **({"secrets": list(secrets)} if secrets else {}),
            **({"why": printable(why, _TEXT_MAX)} if why else {}),
        }
        self._write(json.dumps(line).encode() + b"\n")
