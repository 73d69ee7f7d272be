"""Patterns of a digest's hex digits, which are names of files too: of sha256, and of any that we know."""

from __future__ import annotations

HEX_SHA256 = "[0-9a-f]{64}"
HEX_DIGEST = f"(?:{HEX_SHA256}|[0-9a-f]{{128}})"
