"""Run tests in another order: `pytest -p tests.support.shuffle`, backwards, or by ROOTDISK_SEED=N at random.

Modules are shuffled, and tests within each. Whatever fails then relies on another test.
"""

from __future__ import annotations

import os
import random
from itertools import groupby
from typing import Any

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules, and the tests of each, in another order. All tests of a module stay together, as its fixtures do."""
    modules = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
    seed = os.environ.get("ROOTDISK_SEED")
    chance = random.Random(seed)
    orders: list[list[Any]] = [modules, *modules]
    for order in orders:
        if seed is None:
            order.reverse()
        else:
            chance.shuffle(order)
    items[:] = [item for module in modules for item in module]
