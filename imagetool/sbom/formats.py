"""Formats of a bill of material."""

from __future__ import annotations

from typing import Literal

Format = Literal["spdx", "cyclonedx"]
MEDIA_TYPES: dict[Format, str] = {"spdx": "application/spdx+json", "cyclonedx": "application/vnd.cyclonedx+json"}
FORMATS: dict[str, Format] = {form: form for form in MEDIA_TYPES}
