"""Builds wheels and sdists as setuptools does, with the guest's inits in them; PEP 517.

The compiler is asked for only where the inits are not there: an sdist has them, so installing one needs none.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # all that is not said here

from imagetool.guest import prebuilt


def _compiler() -> list[str]:
    return [] if prebuilt.are_built() else [prebuilt.COMPILER]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiler()]


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_sdist(config_settings), *_compiler()]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    _build_inits()
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    _build_inits()
    return str(build_meta.build_sdist(sdist_directory, config_settings))


def _build_inits() -> None:
    if not prebuilt.are_built():
        prebuilt.build_all()
