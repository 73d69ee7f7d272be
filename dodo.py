"""Tasks of this project: the graph that comes with rootdisk, the demo of images.toml, and the benchmark."""

from __future__ import annotations

from typing import Any

from doit.tools import config_changed

from imagetool.tasks import actions
from imagetool.tasks.dodo import *  # noqa: F403
from imagetool.tasks.dodo import PLACES

DEMO = PLACES.cache / "demo" / "source"


def task_demo() -> dict[str, Any]:
    """Make the demo's source image of Debian's packages."""
    from imagetool.demo.image import VERSION

    return {
        "actions": [(actions.demo, [DEMO])],
        "targets": [str(DEMO / "index.json")],
        "uptodate": [config_changed({"version": VERSION})],
    }


def bench(rounds: int, only: str) -> None:
    """Measure the parts named in `only`, all if it is empty."""
    from bench import __main__ as table

    table.measure(rounds, only.split(",") if only else table.PARTS, small=False, out=PLACES.cache / "bench")


def task_bench() -> dict[str, Any]:
    """Measure against others, side by side; bench/README.md says how to read it."""
    return {
        "actions": [bench],
        "params": [
            {"name": "rounds", "long": "rounds", "type": int, "default": 5, "help": "measured runs of each row"},
            {"name": "only", "long": "only", "type": str, "default": "", "help": "some parts, with commas between"},
        ],
        "uptodate": [False],
    }
