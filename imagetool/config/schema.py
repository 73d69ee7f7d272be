"""The JSON Schema of images.toml: which keys there are, for the parser, for editors and for `imagetool init`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("images.schema.json")


@functools.cache
def definitions() -> dict[str, Any]:
    """Return the definitions of the schema: image, file, owner and so on."""
    found: dict[str, Any] = json.loads(PATH.read_bytes())["definitions"]
    return found


def effects() -> dict[str, str]:
    """Return what each input of the derivation changes, by the input's name, as far as an image's keys decide it.

    A key of the schema says by `x-input` which input it decides, or null if it decides no bytes.
    """
    described = definitions()["image"]["properties"].values()
    return {key["x-input"]: key["x-effect"] for key in described if key["x-input"] is not None}


def keys(kind: str) -> tuple[str, ...]:
    """Every key of an image, file, owner, tls or process, in the schema's order."""
    return tuple(definitions()[kind]["properties"])
