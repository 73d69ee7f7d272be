"""images.toml: what to build, parsed once into frozen values."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any


def __getattr__(name: str) -> Any:
    """Give copies of dodo.py from before 0.2 what was in imagetool/config.py. It goes with the release after that."""
    images = importlib.import_module("imagetool.config.images")
    if name.startswith("_") or isinstance(getattr(images, name, images), ModuleType):  # the default is a module, too
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "imagetool.config is imagetool.config.images now: take this release's dodo.py", DeprecationWarning, stacklevel=2
    )
    return getattr(images, name)
